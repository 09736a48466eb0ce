"""``megaclass gallery``: known identities in an index, and who is on an image."""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megaclass.cli.common import ROW_FORMATS, Rows, row_writer, tell
from megaclass.cli.embed import embedding
from megaclass.cli.parsing import (
    MODEL_OPTIONS,
    make_parser,
    model_asked,
    new_file,
    new_file_if_any,
    parse_with_settings,
    verb_asked,
)
from megaclass.errors import UserError, extra
from megaclass.files import whole_file

if TYPE_CHECKING:
    from megaclass.inference.model import Model
    from megaclass.inference.vectors import Embeddings

_SOURCE = "directory of identities' directories, table path,identity (.csv), record set, or labelled embeddings"
_LEFT_OUT = "An image that cannot be read is named and left out; the exit status is then 1."
_SHOWN, _SIDE = 60, 112  # images of a sheet, and pixels of each
_COLUMNS = ("rank", "identity", "cosine", "nearest", "known")

# Usage, what it does, what is named, and options of each.
_VERBS: dict[str, tuple[str, str, dict[str, str], dict[str, tuple[Any, str]]]] = {
    "build": (
        "SOURCE --run-dir DIR [--far 1e-3 [--verify SET]] [--index exact|ivf]",
        f"Make a gallery; its threshold is that of the model's evaluation, of best accuracy or at --far. {_LEFT_OUT}",
        {"source...": _SOURCE},
        MODEL_OPTIONS
        | {
            "index": (["exact", "ivf"], "compare with all, or with some of millions (faiss)"),
            "far": ("", "take the threshold at this share of accepted impostor pairs, such as 1e-3"),
            "verify": ("", "measure that now on this set: .bin, or labelled images"),
            "threshold": (float, "take this cosine"),
        },
    ),
    "add": (
        "SOURCE --run-dir DIR",
        f"Add images. Who searches meanwhile searches what was there. {_LEFT_OUT}",
        {"source...": _SOURCE},
        MODEL_OPTIONS,
    ),
    "remove": (
        "NAME ...",
        "Remove identities, or single images: their embeddings are deleted. An index of faiss is built anew.",
        {"names...": "of identities, or of images as search tells them"},
        {},
    ),
    "search": (
        "IMAGE|DIR ... --run-dir DIR [--top 5] [--output FILE] [--sheet FILE.png]",
        f"The nearest identities of each image, or `unknown` if the first is below the threshold. {_LEFT_OUT}",
        {"source...": "image files and directories, a record set, or a file of embeddings"},
        MODEL_OPTIONS
        | {
            "top": (5, "identities to name for each image"),
            "output": (
                "",
                "write to this new file instead: .json (a list), .jsonl (lines of images) or .csv",
            ),
            "sheet": ("", f"draw the first {_SHOWN} images beside their nearest ones into this PNG file"),
        },
    ),
    "info": ("", "What a gallery holds, as JSON.", {}, {}),
}


class _Source(NamedTuple):
    """Embeddings that come block by block, the names of their labels, of which model they are, and what is lost."""

    blocks: "Iterable[Embeddings]"
    classes: list[str] | None
    about: dict[str, str]
    lost: dict[str, str]


def gallery(words: list[str]) -> int:
    """Exit status 1 where an image could not be read."""
    verb = verb_asked("gallery", {name: f"DIR {usage}" for name, (usage, *_) in _VERBS.items()}, words)
    if not verb:
        return 0
    usage, text, positional, more = _VERBS[verb]
    named = {"gallery": "directory of the gallery"} | positional
    parser = make_parser(f"megaclass gallery {verb} DIR {usage}", text, named, more)
    options, given = parse_with_settings(parser, words[1:])
    if "source..." not in positional:
        from megaclass.gallery.gallery import Gallery

        found = Gallery(options.gallery)
        if verb == "remove":
            tell(f"{found.remove(options.names):,} images removed")
        print(json.dumps(found.info(), indent=2))
        return 0
    work = {"build": _build, "add": _add, "search": _search}[verb]
    return work(options, lambda: model_asked(parser, options, given))


def _build(options: argparse.Namespace, load: "Callable[[], Model]") -> int:
    directory = new_file(options.gallery, "DIR")

    from megaclass.gallery.gallery import Gallery, build
    from megaclass.gallery.store import Manifest

    if options.index != "exact":
        extra("faiss", "gallery")
    with _opened(options, load, labelled=True) as (model, source):
        threshold, measured = options.threshold, "--threshold"
        if threshold is None:
            threshold, measured = _threshold(model, options.far, options.verify)
        of = source.about.get("fingerprint", ""), source.about.get("model", "")
        manifest = Manifest(*of, options.index, threshold, measured)
        build(directory, manifest, source.blocks, source.classes or [])
    print(json.dumps(Gallery(directory).info(), indent=2))
    return 1 if source.lost else 0


def _threshold(model: "Model | None", far: str, verify: str) -> tuple[float | None, str]:
    """The cosine from which on two images are taken for one identity, and where that is from."""
    if model is None:
        if far or verify:
            raise UserError("--far: of which model? name it by --run-dir, or give --threshold")
        return None, ""
    from megaclass.inference.embedding import metadata

    found, where = model.thresholds, metadata(model)["model"]
    if not (far or verify):
        return model.threshold, "" if model.threshold is None else f"best accuracy of {where}"
    if verify:
        from megaclass.inference.evaluate import evaluate

        where, measured = verify, evaluate(model, verify, episodes=0).metrics["threshold_at_far"]
        found = {name: cosine for name, cosine in measured.items() if cosine is not None}
    if far not in found:
        raise UserError(
            f"--far {far}: not known of {where} (but {', '.join(found) or 'none'}); take one, or --threshold"
        )
    return found[far], f"FAR {far} on {Path(where).name}"


def _add(options: argparse.Namespace, load: "Callable[[], Model]") -> int:
    from megaclass.gallery.gallery import Gallery

    found = Gallery(options.gallery)
    with _opened(options, load, labelled=True) as (_, source):
        found.add_blocks(source.blocks, source.classes or [], source.about)
    print(json.dumps(found.info(), indent=2))
    return 1 if source.lost else 0


def _search(options: argparse.Namespace, load: "Callable[[], Model]") -> int:
    output = new_file_if_any(options.output, suffixes=ROW_FORMATS)
    sheet = new_file_if_any(options.sheet, "--sheet", (".png",))

    from megaclass.gallery.gallery import Gallery

    found = Gallery(options.gallery)
    shown: list[tuple[str, Rows]] = []
    writer = row_writer(output, _COLUMNS, "matches", _print)
    with _opened(options, load, labelled=False) as (model, source), writer as write:
        found.require(source.about)
        for block in source.blocks:
            for name, matches in zip(block.names, found.search(block.embeddings, options.top), strict=True):
                told = [
                    (rank, m.identity, float(f"{m.cosine:.6g}"), m.image, m.known) for rank, m in enumerate(matches, 1)
                ]
                rows = [dict(zip(_COLUMNS, cells, strict=True)) for cells in told]
                write(name, rows, "")
                shown += [(name, rows)] * (len(shown) < _SHOWN)
        for name, error in source.lost.items():
            write(name, [], error)
    if output:
        tell(f"output    {output}")
    if sheet and shown and model:
        _draw(sheet, model, shown)
        tell(f"sheet     {sheet}: {len(shown):,} images")
    return 1 if source.lost else 0


@contextlib.contextmanager
def _opened(
    options: argparse.Namespace, load: "Callable[[], Model]", labelled: bool
) -> "Iterator[tuple[Model | None, _Source]]":
    """The model, where there is one, and what is named."""
    import numpy as np

    from megaclass.inference.embedding import metadata, open_images
    from megaclass.inference.vectors import READ, read_embeddings

    first = options.source[0]
    stored = read_embeddings(first) if Path(first).suffix.lower() in READ else None
    if stored and stored.labels is not None and stored.classes is None:
        present, labels_N = np.unique(stored.labels, return_inverse=True)
        stored = dataclasses.replace(stored, labels=labels_N, classes=[str(label) for label in present])
    images, classes = (None, stored.classes) if stored else open_images(options.source)
    if labelled and classes is None:
        raise UserError(f"{first}: does not say who is on its images; give a {_SOURCE}")
    model = load() if options.run_dir or images else None
    about = metadata(model) if model else {}
    if stored:
        if model and stored.metadata.get("fingerprint") != about["fingerprint"]:
            raise UserError(f"{first}: embeddings of another model than {model.source}; leave out --run-dir")
        yield model, _Source([stored], classes, dict(stored.metadata), {})
    elif model and images:
        with embedding(model, images, classes is not None) as (blocks, lost):
            yield model, _Source(blocks, classes, about, lost)


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
        (name, picture(name), [row | {"picture": picture(row["nearest"])} for row in rows]) for name, rows in shown
    ]
    with whole_file("--sheet", sheet) as part:
        draw_matches(part, _SIDE, cards)
