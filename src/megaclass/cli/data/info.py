"""``megaclass data info``: what a data set holds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaclass.cli.data.options import SET, Options, read_options
from megaclass.cli.parsing import new_file
from megaclass.errors import UserError

if TYPE_CHECKING:
    from megaclass.data.dataset import Dataset

_CLASSES, _PER_CLASS, _SIDE = 10, 8, 96


_OPTIONS: Options = {
    "sheet": ("", "draw samples of some classes into this PNG file, which is new"),
    "seed": (0, "of the sheet: other classes and images with another one"),
    "json": (False, "print JSON instead of a table"),
}


def info(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data info SET [--sheet FILE.png] [--json]",
        "Tell what a data set holds: images, classes, images a class, sizes and formats. Of a large set a sample "
        "is read, and the table says so; `megaclass data check` reads every image.",
        {"set": SET},
        {"": _OPTIONS},
    )
    sheet = new_file(options.sheet, "--sheet")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet: {sheet} is not a .png file; that is what is drawn")

    from rich.console import Console

    from megaclass.cli.data.bar import progress_bar
    from megaclass.data.tools import info as tool
    from megaclass.report.console import info_table

    with progress_bar("reading", "nothing was written") as show:
        found, dataset = tool.info(options.set, progress=show)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        Console().print(info_table(found))
    if sheet is not None:
        _draw(sheet, found, dataset, options.seed)
        if not options.json:
            print(f"sheet     {sheet}")


def _draw(sheet: Path, found: dict[str, Any], dataset: "Dataset", seed: int) -> None:
    import numpy as np

    from megaclass.cli.data.files import new_picture
    from megaclass.data.open import set_titles, split_paths
    from megaclass.data.tools.info import sample_classes
    from megaclass.report.sheet import draw_sheet

    rows = sample_classes(dataset, _CLASSES, _PER_CLASS, _SIDE, seed)
    shown = f"{len(rows)} of {found['classes']:,} classes" if len(rows) < found["classes"] else "all classes"
    title = " + ".join(set_titles(split_paths(found["path"])))
    headline = f"{title}\n{found['images']:,} images of {found['classes']:,} classes; {shown} shown"
    counts_K = np.bincount(dataset.labels(), minlength=dataset.num_classes)
    with new_picture("--sheet", sheet) as part:
        draw_sheet(part, headline, rows, counts_K)
