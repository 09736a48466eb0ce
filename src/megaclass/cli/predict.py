"""``megaclass predict``: what a trained model says of images."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megaclass.cli.common import ROW_FORMATS, Rows, progress_bar, row_writer, tell
from megaclass.cli.parsing import (
    MODEL_OPTIONS,
    make_parser,
    model_asked,
    new_file_if_any,
    parse_with_settings,
)
from megaclass.errors import UserError, printable
from megaclass.files import whole_file

if TYPE_CHECKING:
    from megaclass.data.dataset import Dataset
    from megaclass.inference.images import ImageFiles
    from megaclass.inference.model import Model

_SHOWN, _SIDE = 60, 112  # images of a sheet, and pixels of each

_OPTIONS = {
    "top": (5, "classes to name for each image"),
    "names": ("", 'file of names: lines "n01440764 tench", one name a line in label order, or JSON'),
    "output": ("", "write to this new file instead: .json (a list), .jsonl (lines of images) or .csv (of guesses)"),
    "sheet": ("", f"draw the first {_SHOWN} images and their classes into this PNG file"),
}  # fmt: skip


def predict(words: list[str]) -> int:
    """Exit status 1 where an image could not be read: the others are predicted all the same."""
    parser = make_parser(
        "megaclass predict IMAGE|DIR ... --run-dir DIR [--top 5] [--names FILE] [--output FILE] [--sheet FILE.png] "
        "[--section.key VALUE ...]",
        "What a trained model says of images: of a run with a linear head the most probable classes, of one with a "
        "margin head the identities whose centres are nearest, by cosine. An image that cannot be read is named on "
        "standard error; the others are predicted, and the exit status is 1.",
        {"images...": "image files, and directories: all images below, sorted"},
        MODEL_OPTIONS | _OPTIONS,
    )
    options, given = parse_with_settings(parser, words)
    output = new_file_if_any(options.output, suffixes=ROW_FORMATS)
    sheet = new_file_if_any(options.sheet, "--sheet", (".png",))
    if options.top < 1:
        raise UserError(f"--top: {options.top} is too few; ask for 1 class or more")

    from megaclass.data.classnames import read_names
    from megaclass.inference.images import find_images

    model = model_asked(parser, options, given)
    images = find_images(options.images)
    names = read_names(options.names, model.classes, model.num_classes) if options.names else None
    shown, damaged = _run(model, images, names, options.top, output)
    if sheet and shown:
        draw_sheet(sheet, model, images, shown)
    if damaged:
        tell(f"megaclass: {damaged:,} of {len(images):,} images could not be predicted", sys.stderr)
    if output:
        tell(f"{len(images) - damaged:,} of {len(images):,} images predicted")
        tell(f"output    {output}")
    if sheet:
        tell(f"sheet     {sheet if shown else 'none'}: {len(shown):,} of {len(images):,} images")
    return 1 if damaged else 0


def _run(
    model: "Model", images: "ImageFiles", names: list[str] | None, top: int, output: Path | None
) -> tuple[dict[int, Rows], int]:
    """Predict all images. Returns what was guessed of the first, by number, for a sheet, and how many are damaged."""
    from megaclass.inference.predict import guess_rows, predictions

    # Tables on a terminal show how far it is.
    nothing = contextlib.nullcontext(lambda done, total: None)
    bar = progress_bar("predicting", "nothing was written") if output else nothing
    columns = ("rank", "label", "class", "name", model.measure)
    shown: dict[int, Rows] = {}
    damaged = 0
    with row_writer(output, columns, "predictions", _print) as write, bar as show:
        for number, prediction in enumerate(predictions(model, images, top)):
            rows = guess_rows(model, names, prediction)
            if prediction.error:
                damaged += 1
                tell(f"megaclass: {prediction.error}", sys.stderr)
            elif len(shown) < _SHOWN:
                shown[number] = rows
            write(prediction.image, rows, prediction.error)
            show(number + 1, len(images))
    return shown, damaged


def _print(image: str, rows: Rows, error: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from megaclass.report.console import prediction_table

    if not error:
        console = Console()
        console.print(Text(printable(image), style="bold"), soft_wrap=True)
        console.print(prediction_table(rows))


def draw_sheet(sheet: Path, model: "Model", images: "Dataset", shown: dict[int, Rows]) -> None:
    """Images of a set, by number, beside what is said of them."""
    from megaclass.inference.images import thumbnails
    from megaclass.report.sheet import draw_predictions

    pictures = thumbnails(model.seen(images), model.reader, list(shown), _SIDE)
    cards = [
        (images.describe(number), picture, rows)
        for (number, rows), picture in zip(shown.items(), pictures, strict=True)
    ]
    with whole_file("--sheet", sheet) as part:
        draw_predictions(part, cards)
