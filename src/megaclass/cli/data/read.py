"""The verbs that look into sets of images: ``megaclass data info``, ``check`` and ``pairs``."""

import collections
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaclass.cli.common import SET, progress_bar, read_options, tell
from megaclass.cli.parsing import Options, new_file_if_any
from megaclass.errors import UserError, printable
from megaclass.files import whole_file

if TYPE_CHECKING:
    from megaclass.data.dataset import Dataset
    from megaclass.evaluation.pairs import PairSet

_CLASSES, _PER_CLASS, _SIDE = 10, 8, 96  # of a sheet
_SHOWN = 10  # findings of each kind
_PAIRS: Options = {
    "output": ("", "file to write, .bin or .txt; must not exist"),
    "from": ("", "pairs.txt as LFW's, to write as a .bin; without it pairs are drawn"),
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
    headline = (
        f"{found['path']}\n{found['images']:,} images; {len(rows)} of {found['classes']:,} classes shown"
    )
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
        "megaclass data pairs SOURCE --output FILE.bin|FILE.txt [--from PAIRS.txt] [OPTIONS]",
        "Draw verification pairs from a labelled set, or take those of a list, and write them: FILE.bin with their "
        "images, as lfw.bin has them, FILE.txt as a list.",
        {"source": "directory of class directories, or record set; images of --from (a zip too)"},
        _PAIRS,
    )
    output, listed = new_file_if_any(options.output), vars(options)["from"]
    if output is None or output.suffix not in (".bin", ".txt"):
        raise UserError(f"--output: {options.output!r} is no .bin (pairs and images) and no .txt (pairs)")
    if output.suffix == ".txt" and listed:
        raise UserError("--from: it is a list already; write a .bin")
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
        if output.suffix == ".bin":
            _write_bin(part, dataset, found)
        else:
            _write_list(part, dataset, found)
    tell(f"wrote {len(found):,} pairs in {found.folds} folds to {output}")


def _write_bin(output: Path, dataset: "Dataset", found: "PairSet") -> None:
    from megaclass.data.decode import check_header
    from megaclass.data.verification_bin import write_bin

    used, listed = found.over_used()
    images = []
    for index in used.tolist():
        images.append(dataset.read(index).encoded)
        check_header(images[-1], dataset.describe(index))
    numbers = [index for pair in zip(listed.first, listed.second, strict=True) for index in pair]
    write_bin(output, (images[index] for index in numbers), listed.same.tolist())


def _write_list(output: Path, dataset: "Dataset", found: "PairSet") -> None:
    from megaclass.data.folder import FolderDataset
    from megaclass.evaluation.pairlists import write_lfw_pairs

    if not isinstance(dataset, FolderDataset):
        raise UserError("--output: a .txt names images, and records have no names; write a .bin")
    images = [dataset.path(index).relative_to(dataset.root).as_posix() for index in range(len(dataset))]
    write_lfw_pairs(output, images, found)
