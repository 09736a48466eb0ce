"""Verbs that give a model away: bundle, push."""

from pathlib import Path

from megaclass.cli.common import tell
from megaclass.cli.parsing import RUN_OPTIONS, make_parser, new_file, parse
from megaclass.files import whole_file


def bundle(words: list[str]) -> None:
    parser = make_parser(
        "megaclass bundle SOURCE OUTPUT [--licence NAME] [--intended-use TEXT] [--data-description TEXT] [OPTIONS]",
        "Write a trained model as one directory to share: weights (safetensors), settings, classes, threshold, scores "
        "and a model card. megaclass.load opens it, `megaclass push` publishes it.",
        {"source": "run directory, or one checkpoint", "output": "new directory"},
        {
            "checkpoint": RUN_OPTIONS["checkpoint"],
            "centres": (
                ["fp32", "none"],
                "of a margin head; none: no classes, embeddings alone (default fp32)",
            ),
            "licence": ("", "of the model, such as apache-2.0"),
            "intended-use": ("", "for the card: what the model is for, and what not"),
            "data-description": ("", "for the card: what it was trained on, and with whose consent"),
        },
    )
    card = vars(parse(parser, words))
    source, output, which, centres = map(card.pop, ("source", "output", "checkpoint", "centres"))
    path = new_file(output.rstrip("/"), "OUTPUT")

    from megaclass.inference.bundle import write_bundle
    from megaclass.inference.load import open_model

    model = open_model(source, which, {"run": {"device": "cpu"}})
    with whole_file("OUTPUT", path) as part:
        write_bundle(model, part, name=path.name, centres=centres == "fp32", **card)
    tell(f"wrote {path}")


def push(words: list[str]) -> None:
    parser = make_parser(
        "megaclass push BUNDLE OWNER/NAME [--public]",
        "Upload a bundle to the Hugging Face hub, into a new repository or an existing one.",
        {"bundle": "directory that `megaclass bundle` wrote", "repository": "OWNER/NAME there"},
        {"public": (False, "a new repository is for everybody to see; without it it is private")},
    )
    options = parse(parser, words)

    from megaclass.inference.bundle import push as upload

    tell(f"pushed {upload(Path(options.bundle), options.repository, public=options.public)}")
