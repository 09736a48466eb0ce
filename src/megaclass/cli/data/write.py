"""The verbs that write sets of images: ``megaclass data pack``, ``split`` and ``stage``."""

import os
import re
import sys
import time
from pathlib import Path

from megaclass.cli.common import OUTPUT, SET, progress_bar, read_options, tell
from megaclass.cli.parsing import Options
from megaclass.errors import UserError, in_bytes

_SHOWN_SKIPS = 10
_PACK: Options = {
    "image-size": (
        int,
        "resize to a square of this many pixels; without a size, JPEG files keep their very bytes",
    ),
    "shorter-side": (int, "shrink to this many pixels on the shorter side, never enlarge"),
    "quality": (95, "JPEG quality of images that are encoded anew"),
    "invert": (False, "swap dark and bright"),
    "on-error": (["fail", "skip"], "skip: leave damaged images out, and name them in OUTPUT/skipped.txt"),
    "class-depth": (int, "folder, tar: 2 for alphabet/character/image.png"),
    "root": (str, "table: directory where its paths begin, if not its own"),
    "labels": (
        str,
        "folder, tar: labels, a name a line in the order of the sorted files, or lines 'file,class'",
    ),
    "label-names": (str, "names of the numbers in --labels: lines 'name number', as map_clsloc.txt"),
    "classes": (str, "classes.txt of the training set, to number classes as it does"),
    "exclude": (str, "images to leave out: a name a line, or what `megaclass data suspects` wrote"),
    "where": (str, ".npz: rows with name=value, e.g. background=true"),
    "unpack-bits": ("", ".npz: HEIGHTxWIDTH of images stored by np.packbits"),
    "layout": (
        ["faces", "im2rec"],
        "faces: as the public face sets, with an index record and identity records; im2rec: images alone, as "
        "DALI's and MXNet's readers want them",
    ),
    "workers": (0, "threads; 0: one a core"),
}


def pack(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data pack SOURCE OUTPUT [OPTIONS]",
        "Pack images into record files (train.rec, train.idx, property, classes.txt). They appear whole or not at all.",
        {
            "source": "directory of class directories; record set; .csv or .tsv of path,label; .npz of images and "
            "labels; tar of class directories or class tars; directory or tar of images with --labels",
            "output": OUTPUT,
        },
        _PACK,
    )

    from megaclass.data.pack.packer import pack as pack_images

    started, typed = time.perf_counter(), vars(options).copy()
    index_record, unpack_bits = typed.pop("layout") == "faces", _size(typed.pop("unpack_bits"))
    with progress_bar("packing", "nothing was written") as show:
        written = pack_images(**typed, index_record=index_record, unpack_bits=unpack_bits, progress=show)
    for line in written.skipped[:_SHOWN_SKIPS]:
        tell(f"left out: {line}")
    if (more := len(written.skipped) - _SHOWN_SKIPS) > 0:
        tell(f"left out: {more} more, see {written.path.with_name('skipped.txt')}")
    left_out = f", {written.excluded:,} excluded" if written.excluded else ""
    left_out += f", {len(written.skipped):,} left out" if written.skipped else ""
    seconds = time.perf_counter() - started
    tell(
        f"packed {written.count:,} images of {written.num_classes:,} classes into {written.path} "
        f"({in_bytes(written.path.stat().st_size)}, {seconds:.1f} s, {written.count / seconds:,.0f} images/s{left_out})"
    )


def _size(text: str) -> tuple[int, int] | None:
    if text and not re.fullmatch(r"\d+x\d+", text, re.ASCII):
        raise UserError(f"--unpack-bits: {text!r} is not HEIGHTxWIDTH, e.g. 105x105")
    height, _, width = text.partition("x")
    return (int(height), int(width)) if text else None


def split(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data split SET OUTPUT [--share 0.1] [--seed N]",
        "Split a set by class into OUTPUT/train and OUTPUT/test: to verify on identities that were not trained on. "
        "Classes are numbered from 0 in both; classes.txt has their names, or old numbers.",
        {"set": SET, "output": "directory for the two record sets; must not hold them"},
        {
            "share": (0.1, "what part of the classes the test set gets, between 0 and 1"),
            "seed": (0, "of the draw; classes with one image are not drawn"),
        },
    )

    from megaclass.data.tools.split import split as split_classes

    with progress_bar("splitting", f"nothing was written to {options.output}") as show:
        parts = split_classes(options.set, options.output, options.share, options.seed, show)
    for part in parts:
        tell(f"{part.count:,} images of {part.num_classes:,} classes in {part.path}")


def stage(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data stage SET DIRECTORY",
        "Copy a set to a local disk before training, each file read back and compared. What is there already is "
        "kept; a copy that was broken off goes on; several processes of a machine may call this at once. Standard "
        "output gets the path to train on and nothing else: --data.path $(megaclass data stage SET DIRECTORY).",
        {"set": SET, "directory": "where to; the set gets a directory of its own name in it"},
        {},
    )

    from megaclass.data.tools import stage as tool

    with progress_bar("copying", "started again, it goes on from here", of_bytes=True) as show:
        staged = tool.stage(options.set, Path(options.directory), show)
    for found in staged:
        tell(
            f"{found.path}: {found.files:,} files, {in_bytes(found.copied_bytes)} copied and verified, "
            f"{in_bytes(found.kept_bytes)} were there",
            sys.stderr,
        )
    sys.stdout.flush()
    # A shell takes the very bytes of a path, whatever they are.
    sys.stdout.buffer.write(os.fsencode(os.pathsep.join(str(found.path) for found in staged)) + b"\n")
    sys.stdout.buffer.flush()
