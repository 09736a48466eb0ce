"""``megaclass data pack``: images into record files."""

import sys

from megaclass.cli.parsing import make_parser, parse
from megaclass.errors import UserError


def pack(words: list[str]) -> None:
    parser = make_parser(
        "megaclass data pack SOURCE OUTPUT [OPTIONS]",
        "Pack images into record files (train.rec, train.idx, property).",
    )
    parser.add_argument(
        "source", type=str, help="directory of class directories, or an .npz of images and labels"
    )
    parser.add_argument("output", type=str, help="directory for the record set; must not hold one")
    parser.add_argument(
        "--image-size", type=int, default=0, help="resize to a square of this many pixels; 0: as they are"
    )
    parser.add_argument(
        "--quality", type=int, default=95, help="JPEG quality of images that are encoded anew"
    )
    parser.add_argument(
        "--where", type=str, default="", help=".npz: rows with name=value, e.g. background=true"
    )
    parser.add_argument(
        "--unpack-bits", type=str, default="", help=".npz: HEIGHTxWIDTH of images stored by np.packbits"
    )
    parser.add_argument(
        "--class-depth", type=int, default=1, help="folder: 2 for alphabet/character/image.png"
    )
    parser.add_argument("--invert", action="store_true", help="swap dark and bright")
    options = parse(parser, words)

    from rich.progress import Progress

    from megaclass.data import pack as packing

    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("packing", total=None)
        summary = packing.pack(
            options.source,
            options.output,
            image_size=options.image_size or None,
            quality=options.quality,
            where=options.where or None,
            unpack_bits=_size(options.unpack_bits),
            invert=options.invert,
            class_depth=options.class_depth,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    megabytes = summary.rec_bytes / 1e6
    print(
        f"packed {summary.images:,} images of {summary.classes:,} classes into {summary.path} ({megabytes:.1f} MB)"
    )


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    height, x, width = text.partition("x")
    if not (x and height.isdigit() and width.isdigit()):
        raise UserError(f"--unpack-bits: {text!r} is not HEIGHTxWIDTH, e.g. 105x105")
    return int(height), int(width)
