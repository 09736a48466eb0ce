"""``megaclass gallery``: known identities in an index, and who is on an image."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaclass.cli.common import ROW_FORMATS, Rows, row_writer, tell, whole_file
from megaclass.cli.embed import embedding
from megaclass.cli.parsing import RUN_OPTIONS, make_parser, model_asked, new_file, parse_with_settings
from megaclass.errors import UserError, lookup

if TYPE_CHECKING:
    from megaclass.inference.model import Model

_DIR = "directory of the gallery"
_SOURCE = (
    "directory of identities' directories, table path,identity (.csv), record set, or labelled embeddings"
)
_SHOWN, _SIDE = 60, 112  # images of a sheet, and pixels of each
_COLUMNS = ("rank", "identity", "cosine", "nearest", "known")


def gallery(words: list[str]) -> int | None:
    """Run the verb that the first word names. Returns its exit status, None being 0."""
    verbs: dict[str, Callable[[list[str]], int | None]] = {
        "build": _build, "add": _add, "remove": _remove, "search": _search, "info": _info
    }  # fmt: skip
    if not words or words[0].startswith("-"):
        raise UserError(
            f"which gallery command? known: {', '.join(verbs)}; `megaclass gallery build --help` says more"
        )
    return lookup(verbs, words[0], "gallery command")(words[1:])


def _build(words: list[str]) -> int:
    parser = make_parser(
        "megaclass gallery build DIR SOURCE --run-dir DIR [--far 1e-3 [--verify SET]] [--index exact|hnsw|ivf]",
        "Make a gallery. Its threshold is that of the model's evaluation: of its best accuracy, or at a false accept "
        "rate. An image that cannot be read is named and left out, and the exit status is 1.",
        {"gallery": "new directory", "source": _SOURCE},
        RUN_OPTIONS
        | {
            "index": (["exact", "hnsw", "ivf"], "compare with all, or with some of millions (faiss)"),
            "template": (
                ["max", "mean"],
                "an identity is as near as its nearest image, or as the mean of its images",
            ),
            "far": ("", "take the threshold at this share of accepted impostor pairs, such as 1e-3"),
            "verify": ("", "measure that now on this set: .bin, or labelled images"),
            "threshold": (float, "take this cosine"),
        },
    )
    options, given = parse_with_settings(parser, words)
    from megaclass.gallery.gallery import build
    from megaclass.gallery.store import Manifest
    from megaclass.inference.vectors import extra

    if options.index != "exact":
        extra("faiss", "gallery")
    directory = new_file(options.gallery, "DIR") or Path()
    model = _model(parser, options, given, options.source)
    threshold, measured = options.threshold, "--threshold"
    if threshold is None:
        threshold, measured = _threshold(model, options.far, options.verify)
    with _source(model, [options.source], True) as (blocks, classes, about, lost):
        told = (about.get("fingerprint", ""), about.get("model", ""), options.template, options.index)
        build(directory, Manifest(*told, threshold, measured), blocks, classes)
    _info([options.gallery])
    return 1 if lost else 0


def _threshold(model: "Model | None", far: str, verify: str) -> tuple[float | None, str]:
    """The cosine from which on two images are taken for one identity, and where that is from."""
    if model is None or not (far or verify):
        if far or verify:
            raise UserError("--far: of which model? name it by --run-dir, or give --threshold")
        return (
            model and model.threshold
        ), f"best accuracy of {model.source}" if model and model.threshold else ""
    found, where = model.thresholds, model.source
    if verify:
        from megaclass.config import from_mapping
        from megaclass.evaluate.evaluators import build_verifier

        config, where = from_mapping({"evaluate": {"flip": model.about.flip}}, complete=False), verify
        metrics = build_verifier(config, Path(verify), model.reader)(model.backbone, None).metrics
        found = {name: cosine for name, cosine in metrics["threshold_at_far"].items() if cosine is not None}
    if far not in found:
        raise UserError(
            f"--far {far}: not known of {where} (but {', '.join(found) or 'none'}); take one, or --threshold"
        )
    return found[far], f"FAR {far} on {where}"


def _add(words: list[str]) -> int:
    parser = make_parser(
        "megaclass gallery add DIR SOURCE --run-dir DIR",
        "Add images. Who searches meanwhile searches what was there. Exit status 1 where an image is left out.",
        {"gallery": _DIR, "source": _SOURCE},
        RUN_OPTIONS,
    )
    options, given = parse_with_settings(parser, words)
    from megaclass.gallery.gallery import Gallery

    model = _model(parser, options, given, options.source)
    found = Gallery(options.gallery, model)
    with _source(model, [options.source], True) as (blocks, classes, about, lost):
        found.add_blocks(blocks, classes, about)
    _info([options.gallery])
    return 1 if lost else 0


def _remove(words: list[str]) -> None:
    parser = make_parser(
        "megaclass gallery remove DIR NAME ...",
        "Remove identities, or single images: their embeddings are deleted. An index of faiss is built anew.",
        {"gallery": _DIR, "names...": "of identities, or of images as search tells them"},
    )
    options, _ = parse_with_settings(parser, words)
    from megaclass.gallery.gallery import Gallery

    tell(f"{Gallery(options.gallery).remove(options.names):,} images removed")


def _info(words: list[str]) -> None:
    parser = make_parser("megaclass gallery info DIR", "What a gallery holds, as JSON.", {"gallery": _DIR})
    options, _ = parse_with_settings(parser, words)
    from megaclass.gallery.gallery import Gallery

    print(json.dumps(Gallery(options.gallery).info(), indent=2))


def _search(words: list[str]) -> int:
    parser = make_parser(
        "megaclass gallery search DIR IMAGE|DIR ... --run-dir DIR [--top 5] [--output FILE] [--sheet FILE.png]",
        "The nearest identities of each image, and `unknown` where the first is below the threshold. An image that "
        "cannot be read is named on standard error, and the exit status is 1.",
        {"gallery": _DIR, "images...": "image files and directories, a record set, or a file of embeddings"},
        RUN_OPTIONS
        | {
            "top": (5, "identities to name for each image"),
            "output": (
                "",
                "write to this new file instead: .json (a list), .jsonl (lines of images) or .csv",
            ),
            "sheet": ("", f"draw the first {_SHOWN} images beside their nearest ones into this PNG file"),
        },
    )
    options, given = parse_with_settings(parser, words)
    output = new_file(options.output, suffixes=ROW_FORMATS)
    sheet = new_file(options.sheet, "--sheet", (".png",))
    from megaclass.gallery.gallery import Gallery

    model = _model(parser, options, given, options.images[0])
    found = Gallery(options.gallery, model)
    shown: list[tuple[str, Rows]] = []
    writer = row_writer(output, _COLUMNS, "matches", _print)
    with _source(model, options.images, False) as (blocks, _, about, lost), writer as write:
        found.require(about)
        for block in blocks:
            for name, matches in zip(block.names, found.search(block.embeddings, options.top), strict=True):
                rows = [dict(zip(_COLUMNS, _row(rank, *m), strict=True)) for rank, m in enumerate(matches, 1)]
                write(name, rows, "")
                shown += [(name, rows)] * (len(shown) < _SHOWN)
        for name, told in lost.items():
            write(name, [], told)
    if output:
        tell(f"output    {output}")
    if sheet and shown:
        _draw(sheet, model, shown)
        tell(f"sheet     {sheet}: {len(shown):,} images")
    return 1 if lost else 0


def _row(rank: int, identity: str, cosine: float, image: str, known: bool) -> tuple[Any, ...]:
    return rank, identity, float(f"{cosine:.6g}"), image, known


def _model(parser: Any, options: Any, given: Any, source: str) -> "Model | None":
    from megaclass.inference.vectors import READ

    embeddings = Path(source).suffix.lower() in READ
    return None if embeddings and not options.run_dir else model_asked(parser, options, given)


@contextlib.contextmanager
def _source(
    model: "Model | None", paths: Sequence[str], labelled: bool
) -> Iterator[tuple[Any, Any, Any, dict[str, str]]]:
    """Yields blocks of embeddings, the names of their labels, the metadata, and what is lost so far."""
    from megaclass.inference.embedding import metadata, open_images
    from megaclass.inference.vectors import READ, read_embeddings

    stored = read_embeddings(paths[0]) if Path(paths[0]).suffix.lower() in READ else None
    images, classes = (None, stored.classes) if stored else open_images(paths)
    if labelled and classes is None:
        raise UserError(f"{paths[0]}: does not say who is on its images; give a {_SOURCE}")
    if stored:
        yield [stored], classes, stored.metadata, {}
    elif model and images:
        with embedding(model, images, classes is not None) as (blocks, lost):
            yield blocks, classes, metadata(model), lost


def _print(image: str, rows: Rows, error: str) -> None:
    from rich.console import Console

    from megaclass.report.console import match_table

    if not error:
        Console().print(match_table(image, rows))


def _draw(sheet: Path, model: "Model | None", shown: Sequence[tuple[str, Rows]]) -> None:
    from megaclass.inference.images import ImageFiles, thumbnails
    from megaclass.report.sheet import draw_matches

    def picture(name: str) -> Any:
        with contextlib.suppress(UserError):  # it need not lie there any more, or be a file
            return thumbnails(ImageFiles([name]), model.reader, [0], _SIDE)[0] if model else None
        return None

    cards = [
        (name, picture(name), [row | {"picture": picture(row["nearest"])} for row in rows])
        for name, rows in shown
    ]
    with whole_file("--sheet", sheet) as part:
        draw_matches(part, _SIDE, cards)
