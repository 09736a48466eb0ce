"""The verbs that look into sets of images: ``megaclass data info``, ``check`` and ``pairs``."""

import collections
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaclass.cli.common import SET, progress_bar, read_options, tell
from megaclass.cli.parsing import Options, new_file, new_file_if_any
from megaclass.errors import printable
from megaclass.files import whole_file

if TYPE_CHECKING:
    from megaclass.data.dataset import Dataset
    from megaclass.evaluation.pairs import PairSet

_CLASSES, _PER_CLASS, _SIDE = 10, 8, 96  # of a sheet
_SHOWN = 10  # findings of each kind
_PAIRS: Options = {
    "output": ("", ".bin file to write; must not exist"),
    "from": ("", "pairs.txt as LFW's; without it pairs are drawn"),
    "pairs": (6000, "how many to draw, half of one identity"),
    "folds": (10, "folds that share no identity if possible"),
    "seed": (0, "one seed draws one list"),
}


def info(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data info SET [--sheet FILE.png] [--json]",
        "Tell what a data set holds: images, classes, images a class, sizes and formats. Of a large set a sample "
        "is read, and the table says so; `megaclass data check` reads every image.",
        {"set": SET},
        {
            "sheet": ("", "draw samples of some classes into this PNG file, which is new"),
            "json": (False, "print JSON instead of a table"),
        },
    )
    sheet = new_file_if_any(options.sheet, "--sheet", (".png",))

    from rich.console import Console

    from megaclass.data.tools import info as tool
    from megaclass.report.console import info_table

    with progress_bar("reading", "nothing was written") as show:
        found, dataset = tool.info(options.set, progress=show)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        Console().print(info_table(found))
    if sheet is not None:
        _draw(sheet, found, dataset)


def _draw(sheet: Path, found: dict[str, Any], dataset: "Dataset") -> None:
    import numpy as np

    from megaclass.data.tools.info import sample_classes
    from megaclass.report.sheet import draw_sheet

    rows = sample_classes(dataset, _CLASSES, _PER_CLASS, _SIDE)
    headline = f"{found['path']}\n{found['images']:,} images; {len(rows)} of {found['classes']:,} classes shown"
    counts_K = np.bincount(dataset.labels(), minlength=dataset.num_classes)
    with whole_file("--sheet", sheet) as part:
        draw_sheet(part, headline, rows, counts_K)


def check(words: list[str]) -> int:
    options = read_options(
        words,
        "megaclass data check SET [--output FILE.jsonl]",
        "Decode every image, and list damaged, duplicate and mislabelled ones, labels out of range or other than the "
        "identity records say, and records that the index leaves out. Exit status 0: sound; 1: something was found.",
        {"set": f"{SET} are searched for common images too"},
        {
            "output": ("", "write all findings to this file, a line of JSON each; some are printed"),
            "workers": (0, "decoding threads; 0: one for each core"),
        },
    )
    output = new_file_if_any(options.output)

    from rich.console import Console

    from megaclass.data.tools import check as tool
    from megaclass.report.console import check_table

    with progress_bar("checking", "nothing was written") as show:
        images, findings = tool.check(options.set, workers=options.workers, progress=show)
    if output:
        with whole_file("--output", output) as part, part.open("x", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(finding._asdict())}\n" for finding in findings)
    counts = collections.Counter(finding.kind for finding in findings)
    console = Console(soft_wrap=True, highlight=False)
    for kind, text in tool.KINDS.items():
        if count := counts[kind]:
            console.print(f"{text}: {count:,}", style="bold")
            for finding in [finding for finding in findings if finding.kind == kind][:_SHOWN]:
                console.print(printable(f"  {finding.where}: {finding.reason}"), markup=False)
            if count > _SHOWN:
                console.print(f"  … and {count - _SHOWN:,} more: --output FILE has all")
    console.print(check_table(options.set, counts, tool.KINDS, images))
    return 1 if findings else 0


def pairs(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data pairs SOURCE --output FILE.bin [--from PAIRS.txt] [OPTIONS]",
        "Draw verification pairs from a labelled set, or take those of a list, and write them with their images, as "
        "lfw.bin has them.",
        {"source": "directory of class directories, or record set; images of --from (a zip too)"},
        _PAIRS,
    )
    output, listed = new_file(options.output, suffixes=(".bin",)), vars(options)["from"]
    if listed:
        from megaclass.evaluation.pairlists import open_listed_pairs

        images, found = open_listed_pairs(listed, Path(options.source))
        dataset: Dataset = images
    else:
        from megaclass.data.open import open_dataset
        from megaclass.evaluation.pairs import generate_pairs

        dataset = open_dataset(options.source)
        found = generate_pairs(dataset.labels(), options.pairs, options.seed, options.folds)
    with whole_file("--output", output) as part:
        _write_bin(part, dataset, found)
    tell(f"wrote {len(found):,} pairs in {found.folds} folds to {output}")


def _write_bin(output: Path, dataset: "Dataset", found: "PairSet") -> None:
    import numpy as np

    from megaclass.data.decode import check_header
    from megaclass.data.verification_bin import write_bin

    @functools.cache  # an image of several pairs is stored once
    def read(index: int) -> bytes:
        encoded = dataset.read(index).encoded
        check_header(encoded, dataset.describe(index))
        return encoded

    images = np.stack([found.first, found.second], axis=1).ravel().tolist()
    write_bin(output, map(read, images), found.same.tolist())
