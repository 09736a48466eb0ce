"""``megaclass data pack``: images into record files."""

import re
import time
from typing import TYPE_CHECKING, Any

from megaclass.cli.data.options import OUTPUT, Options, read_options
from megaclass.errors import UserError

if TYPE_CHECKING:
    from megaclass.data.pack.packer import PackSummary

_SHOWN_SKIPS = 10
_GROUPS: dict[str, Options] = {
    "images; without a size, JPEG files keep their very bytes": {
        "image-size": (0, "resize to a square of this many pixels"),
        "shorter-side": (0, "shrink to this many pixels on the shorter side, never enlarge"),
        "quality": (95, "JPEG quality of images that are encoded anew"),
        "invert": (False, "swap dark and bright"),
        "on-error": (["fail", "skip"], "skip: leave damaged images out, and name them in OUTPUT/skipped.txt"),
    },
    "reading the source": {
        "class-depth": (1, "folder, tar: 2 for alphabet/character/image.png"),
        "root": ("", "table: directory where its paths begin, if not its own"),
        "labels": (
            "",
            "folder, tar: labels, a name a line in the order of the sorted files, or lines 'file,class'",
        ),
        "label-names": ("", "names of the numbers in --labels: lines 'name number', as map_clsloc.txt"),
        "classes": ("", "classes.txt of the training set, to number classes as it does"),
        "where": ("", ".npz: rows with name=value, e.g. background=true"),
        "unpack-bits": ("", ".npz: HEIGHTxWIDTH of images stored by np.packbits"),
    },
    "writing": {
        "layout": (
            ["faces", "im2rec"],
            "faces: as the public face sets, with an index record and identity records; im2rec: images alone, as "
            "DALI's and MXNet's readers want them",
        ),
        "workers": (0, "threads; 0: one a core"),
    },
}


def pack(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data pack SOURCE OUTPUT [OPTIONS]",
        "Pack images into record files (train.rec, train.idx, property, classes.txt). They appear whole or not at all.",
        {
            "source": "directory of class directories; .csv or .tsv of path,label; .npz of images and labels; tar of "
            "class directories or class tars; directory or tar of images with --labels",
            "output": OUTPUT,
        },
        _GROUPS,
    )

    from megaclass.cli.data.bar import progress_bar
    from megaclass.data.pack.packer import pack as pack_images

    started = time.perf_counter()
    try:
        with progress_bar("packing", "nothing was written") as show:
            summary = pack_images(
                options.source,
                options.output,
                image_size=options.image_size or None,
                shorter_side=options.shorter_side or None,
                quality=options.quality,
                invert=options.invert,
                where=options.where or None,
                unpack_bits=_size(options.unpack_bits),
                class_depth=options.class_depth,
                root=options.root or None,
                labels=options.labels or None,
                label_names=options.label_names or None,
                classes=options.classes or None,
                index_record=options.layout == "faces",
                on_error=options.on_error,
                workers=options.workers,
                progress=show,
            )
    except UserError as error:
        raise UserError(_with_dashes(str(error), options)) from None
    _tell(summary, time.perf_counter() - started)


def _tell(summary: "PackSummary", seconds: float) -> None:
    for line in summary.skipped[:_SHOWN_SKIPS]:
        print(f"left out: {line}")
    if (more := len(summary.skipped) - _SHOWN_SKIPS) > 0:
        print(f"left out: {more} more, see {summary.path.with_name('skipped.txt')}")
    notes = [
        f"{summary.rec_bytes / 1e6:.1f} MB",
        f"{seconds:.1f} s",
        f"{summary.images / seconds:,.0f} images/s",
    ]
    if summary.skipped:
        notes.append(f"{len(summary.skipped):,} left out")
    print(
        f"packed {summary.images:,} images of {summary.classes:,} classes into {summary.path} ({', '.join(notes)})"
    )


def _with_dashes(message: str, options: Any) -> str:
    """The option that a message begins with as it is typed: the library has Python's names."""
    found = re.match(r"(\w+)(?=:)|([a-z]+_[a-z]+)(?= )", message)
    if found is None or found[0] not in options or found[0] in (options.source, options.output):
        return message
    return f"--{found[0].replace('_', '-')}{message[found.end() :]}"


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    height, x, width = text.partition("x")
    if not (x and height.isdigit() and width.isdigit()):
        raise UserError(f"--unpack-bits: {text!r} is not HEIGHTxWIDTH, e.g. 105x105")
    return int(height), int(width)
