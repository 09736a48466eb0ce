"""``megaclass data pairs``: pairs for verification, as a list or with their images as a .bin file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaclass.cli.data.options import Options, read_options
from megaclass.cli.parsing import new_file
from megaclass.errors import UserError

if TYPE_CHECKING:
    from megaclass.data.dataset import Dataset
    from megaclass.evaluate.pairs import PairSet

_DRAWING = {"pairs": 6000, "folds": 10, "seed": 0}


_OPTIONS: Options = {
    "output": ("", "file to write, .bin or .txt; must not exist"),
    "from": ("", "pairs.txt as LFW's, or of numbers; without it pairs are drawn"),
    "pairs": (_DRAWING["pairs"], "how many to draw, half of one identity"),
    "folds": (_DRAWING["folds"], "folds that share no identity if possible"),
    "seed": (_DRAWING["seed"], "one seed draws one list"),
    "numbered": (False, ".txt of sample numbers, which also holds for records packed from the same folder"),
}


def pairs(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data pairs SOURCE --output FILE.bin|FILE.txt [--from PAIRS.txt] [OPTIONS]",
        "Draw verification pairs from a labelled set, or take those of a list, and write them: FILE.bin with their "
        "images, as lfw.bin has them, FILE.txt as a list.",
        {"source": "directory of class directories, or record set; images of --from (a zip too)"},
        {"": _OPTIONS},
    )
    output = new_file(options.output)
    if output is None or output.suffix not in (".bin", ".txt"):
        raise UserError(f"--output: {options.output!r} is no .bin (pairs and images) and no .txt (pairs)")
    if options.numbered and output.suffix == ".bin":
        raise UserError("--numbered goes with a .txt; a .bin holds the images themselves")
    dataset, found = _listed(options) if vars(options)["from"] else _drawn(options)
    if output.suffix == ".bin":
        _write_bin(output, dataset, found)
    else:
        _write_list(output, dataset, found, options.numbered)
    print(f"wrote {len(found):,} pairs in {found.folds} folds to {output}")


def _drawn(options: Any) -> "tuple[Dataset, PairSet]":
    from megaclass.data.open import open_dataset
    from megaclass.evaluate.pairs import generate_pairs

    if options.seed < 0:
        raise UserError(f"--seed: {options.seed} is below 0")
    dataset = open_dataset(options.source)
    return dataset, generate_pairs(dataset.labels(), options.pairs, options.seed, options.folds)


def _listed(options: Any) -> "tuple[Dataset, PairSet]":
    """Images and pairs of --from; a list of names over a folder becomes one of the folder's numbers if asked."""
    import numpy as np

    from megaclass.data.folder import FolderDataset
    from megaclass.data.imagelist import ImageList
    from megaclass.evaluate.evaluators import open_listed_pairs
    from megaclass.evaluate.pairs import PairSet

    changed = [name for name, default in _DRAWING.items() if getattr(options, name) != default]
    if changed:
        raise UserError(
            f"--{changed[0]} is for drawn pairs; those of --from {vars(options)['from']} are fixed"
        )
    dataset, found = open_listed_pairs(vars(options)["from"], Path(options.source))
    if options.numbered and isinstance(dataset, ImageList):
        folder = FolderDataset(options.source)
        numbers = {_name(folder, index): index for index in range(len(folder))}
        missing = [name for name in dataset.names if name not in numbers]
        if missing:
            raise UserError(f"{options.source}: {missing[0]} is no image of its class directories")
        number_N = np.array([numbers[name] for name in dataset.names], dtype=np.int64)
        return folder, PairSet(number_N[found.first], number_N[found.second], found.same, found.folds)
    return dataset, found


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


def _write_list(output: Path, dataset: "Dataset", found: "PairSet", numbered: bool) -> None:
    from megaclass.data.folder import FolderDataset
    from megaclass.data.imagelist import ImageList
    from megaclass.evaluate.pairlists import write_lfw_pairs, write_numbered_pairs

    if numbered or not isinstance(dataset, FolderDataset | ImageList):
        write_numbered_pairs(output, found)
    elif isinstance(dataset, ImageList):
        raise UserError("--from is a list of names already; add --numbered, or write a .bin")
    else:
        write_lfw_pairs(output, [_name(dataset, index) for index in range(len(dataset))], found)


def _name(folder: Any, index: int) -> str:
    return folder.path(index).relative_to(folder.root).as_posix()
