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
from megaclass.gallery import INDEXES, TEMPLATES

if TYPE_CHECKING:
    from megaclass.inference.model import Model

_DIR = "directory of the gallery"
_SOURCE = (
    "directory with a sub-directory an identity, table of lines path,identity (.csv), record set, or labelled file "
    "of embeddings"
)
_SHOWN, _SIDE = 60, 112  # images of a sheet, and pixels of each


def gallery(words: list[str]) -> int | None:
    """Run the verb that the first word names. Returns its exit status, None being 0."""
    verbs: dict[str, tuple[Callable[[list[str]], int | None], str]] = {
        "build": (_build, "make one of images, or of a file of embeddings"),
        "add": (_add, "more images of new or known identities"),
        "remove": (_remove, "identities, or single images"),
        "search": (_search, "the nearest identities of images"),
        "info": (_info, "what one holds"),
    }
    if words[:1] in (["-h"], ["--help"], ["help"]):
        for name, (_, text) in verbs.items():
            print(f"  megaclass gallery {name:7} DIR  {text}")
        print("\n`megaclass gallery build --help` says more, as for each of them.")
        return None
    if not words:
        raise UserError(f"which gallery command? known: {', '.join(verbs)}")
    return lookup(verbs, words[0], "gallery command")[0](words[1:])


def _build(words: list[str]) -> int:
    parser = make_parser(
        "megaclass gallery build DIR SOURCE --run-dir DIR [--far 1e-3 [--verify SET]] [--index exact|hnsw|ivf]",
        "Make a gallery. Its threshold is that of the model's evaluation: of its best accuracy, or at a false accept "
        "rate. An image that cannot be read is named and left out, and the exit status is 1.",
        {"gallery": "new directory", "source": _SOURCE},
        RUN_OPTIONS
        | {
            "index": (INDEXES, "exact compares with all; hnsw and ivf with some of millions (faiss)"),
            "template": (
                TEMPLATES,
                "an identity is as near as its nearest image, or as the mean of its images",
            ),
            "far": (float, "take the threshold at this share of accepted impostor pairs"),
            "verify": ("", "measure that now on this set: .bin, or labelled images"),
            "threshold": (float, "take this cosine"),
        },
    )
    options, given = parse_with_settings(parser, words)
    if options.verify and options.far is None:
        raise UserError("--verify: say at which --far, such as 1e-3")
    if options.index != "exact":
        from megaclass.inference.vectors import extra

        extra("faiss", "gallery")

    from megaclass.gallery.gallery import Gallery, build
    from megaclass.gallery.store import Manifest
    from megaclass.gallery.threshold import threshold_at

    directory = new_file(options.gallery, "DIR") or Path()
    model = _model(parser, options, given, options.source)
    threshold, measured = options.threshold, "--threshold"
    if threshold is None and options.far is not None:
        if model is None:
            raise UserError("--far: of which model? name it by --run-dir, or give --threshold")
        threshold, measured = threshold_at(model, options.far, options.verify)
    elif threshold is None:
        threshold = model.threshold if model else None
        measured = (
            f"best accuracy in the evaluation of {model.source}"
            if model and threshold is not None
            else "none"
        )
    with _labelled(model, options.source) as (blocks, classes, about, lost):
        told = (about.get("fingerprint", ""), about.get("model", ""), options.template, options.index)
        build(directory, Manifest(0, *told, threshold, measured), blocks, classes)
    _tell(Gallery(directory).info())
    if threshold is None:
        tell("no threshold: somebody is always nearest; --far or --threshold sets one")
    return 1 if lost else 0


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
    with _labelled(model, options.source) as (blocks, classes, about, lost):
        found.add_blocks(blocks, classes, about)
    _tell(found.info())
    return 1 if lost else 0


def _remove(words: list[str]) -> None:
    parser = make_parser(
        "megaclass gallery remove DIR NAME ...",
        "Remove identities, or single images: their embeddings are deleted. An index of faiss is built anew.",
        {"gallery": _DIR, "names...": "of identities, or of images as search tells them"},
    )
    options, _ = parse_with_settings(parser, words)

    from megaclass.gallery.gallery import Gallery

    found = Gallery(options.gallery)
    tell(f"{found.remove(options.names):,} images removed")
    _tell(found.info())


def _info(words: list[str]) -> None:
    every = {"json": (False, "as JSON")}
    parser = make_parser(
        "megaclass gallery info DIR [--json]", "What a gallery holds.", {"gallery": _DIR}, every
    )
    options, _ = parse_with_settings(parser, words)

    from megaclass.gallery.gallery import Gallery

    found = Gallery(options.gallery).info()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _tell(found)


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
    if sheet and model is None:
        raise UserError("--sheet: draws images, and a file of embeddings has none")
    found = Gallery(options.gallery, model)
    shown: list[tuple[str, Rows]] = []
    columns = ("rank", "identity", "cosine", "nearest", "known")
    with (
        _source(model, options.images) as (blocks, _, about, lost),
        row_writer(output, columns, "matches", _print) as write,
    ):
        found.require(about)
        for block in blocks:
            for name, matches in zip(block.names, found.search(block.rows_BD, options.top), strict=True):
                rows = [
                    dict(
                        zip(
                            columns,
                            (rank, one.identity, round(one.cosine, 6), one.image, one.known),
                            strict=True,
                        )
                    )
                    for rank, one in enumerate(matches, start=1)
                ]
                write(name, rows, "")
                shown += [(name, rows)] * (len(shown) < _SHOWN)
        for name, told in lost.items():
            write(name, [], told)
    if output:
        tell(f"output    {output}")
    if sheet and model and shown:
        _draw(sheet, model, shown)
        tell(f"sheet     {sheet}: {len(shown):,} images")
    return 1 if lost else 0


# -- what they share -------------------------------------------------------------------------------------


def _model(parser: Any, options: Any, given: Any, source: str) -> "Model | None":
    from megaclass.inference.vectors import is_embeddings

    return model_asked(parser, options, given) if options.run_dir or not is_embeddings(source) else None


@contextlib.contextmanager
def _source(
    model: "Model | None", paths: Sequence[str]
) -> "Iterator[tuple[Any, list[str] | None, dict[str, str], dict]]":
    """Yields blocks of embeddings, the names of their labels where they have any, the metadata, and what is lost."""
    from megaclass.data.dataset import class_names
    from megaclass.inference.embedding import is_labelled, metadata, open_images
    from megaclass.inference.vectors import Block, is_embeddings, read_embeddings

    if is_embeddings(paths[0]):
        stored = read_embeddings(paths[0])
        if model and stored.metadata.get("fingerprint") != metadata(model)["fingerprint"]:
            raise UserError(
                f"{paths[0]}: embeddings of another model than {model.source}; leave out --run-dir"
            )
        labels_N = stored.labels
        classes = stored.classes or (
            None if labels_N is None else [str(i) for i in range(labels_N.max() + 1)]
        )
        yield [Block(stored.names, stored.embeddings, labels_N)], classes, stored.metadata, {}
        return
    assert model is not None
    images = open_images(paths)
    names = (
        (class_names(images) or [str(i) for i in range(images.num_classes)]) if is_labelled(images) else None
    )
    with embedding(model, images, images.describe) as (blocks, lost):
        yield blocks, names, metadata(model), lost


@contextlib.contextmanager
def _labelled(model: "Model | None", source: str) -> "Iterator[tuple[Any, list[str], dict[str, str], dict]]":
    with _source(model, [source]) as (blocks, classes, about, lost):
        if classes is None:
            raise UserError(f"{source}: does not say who is on its images; give a {_SOURCE}")
        yield blocks, classes, about, lost


def _tell(info: dict[str, Any]) -> None:
    for name, value in info.items():
        tell(f"{name:12} {value:,}" if isinstance(value, int) else f"{name:12} {value}")


def _print(image: str, rows: Rows, error: str) -> None:
    from rich.console import Console

    from megaclass.report.console import match_table

    if not error:
        Console().print(match_table(image, rows))


def _draw(sheet: Path, model: "Model", shown: Sequence[tuple[str, Rows]]) -> None:
    from megaclass.inference.images import ImageFiles, thumbnails
    from megaclass.report.sheet import draw_matches

    def picture(name: str) -> Any:
        with contextlib.suppress(UserError):  # it need not lie there any more, or be a file
            return thumbnails(ImageFiles([name]), model.reader, [0], _SIDE)[0]
        return None

    cards = [
        (name, picture(name), [row | {"picture": picture(row["nearest"])} for row in rows])
        for name, rows in shown
    ]
    with whole_file("--sheet", sheet) as part:
        draw_matches(part, _SIDE, cards)
