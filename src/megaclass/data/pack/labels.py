"""Labels and the names of classes: from files of labels, by number or by name, into classes.txt.

ILSVRC2012_validation_ground_truth.txt has a number a line, in the order of the sorted file names. The numbers are
ILSVRC's ids, which count from 1 in an order of their own: taken for positions among the sorted names, they would
give a pack that trains and is wrong. So numbers are taken only with a file that names them.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from megaclass.data.dataset import first_line, read_text
from megaclass.data.pack.source import SourceOptions
from megaclass.errors import UserError, near_match

_FORMS = "a class name a line in the order of the sorted file names, or lines 'file name,class name'"
_SPLITS: tuple[Callable[[str], list[str]], ...] = (
    lambda line: line.split("\t"),
    lambda line: next(csv.reader([line], skipinitialspace=True), []),
    lambda line: line.split(None, 1),
)
# As Kaggle has ILSVRC's: a class with the corners of its box, perhaps several times.
_BOX = r"(?:\s+-?[0-9]+(?:\.[0-9]+)?){4}"
_BOXED = re.compile(rf"(\S+){_BOX}(?:\s+\1{_BOX})*", re.ASCII)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})", re.ASCII)
_DIGITS = re.compile(r"-?[0-9]+", re.ASCII)
_NAME_AND_NUMBER = re.compile(r"(\S+)\s+([0-9]{1,9})(\s.*)?", re.ASCII)


def label_by_file(
    files: Sequence[str], options: SourceOptions, known: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    """Labels, int64, and class names of ``files`` (paths with forward slashes) by the files that ``options`` name.

    ``known``: the names of all classes, where they are given. Raises UserError, which says what is missing.
    """
    assert options.labels is not None
    names = _names_of_files(options.labels, files)
    if options.label_names is None:
        if are_numbers(names, known):
            raise UserError(
                f"labels: {options.labels} holds numbers; add --label-names FILE with lines 'name number', as "
                "map_clsloc.txt (ILSVRC's ids count from 1 and are not in the order of the names)"
            )
        return number_names(names)
    if not are_numbers(names):
        raise UserError(f"label_names is for numbers, but {options.labels} holds names; leave it out")
    by_number = _names_by_number(options.label_names)
    unknown = sorted({int(name) for name in names} - by_number.keys())
    if unknown:
        raise UserError(
            f"label_names: {options.label_names} has no name for {unknown[0]}{_and_others(unknown)}; give the file "
            "that belongs to labels"
        )
    return number_names([by_number[int(name)] for name in names])


def number_names(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels, int64, of the sorted names, and these."""
    classes = sorted(set(names))
    number_of = {name: number for number, name in enumerate(classes)}
    return np.fromiter((number_of[name] for name in names), np.int64, len(names)), classes


def number_classes(
    labels_N: np.ndarray, classes: list[str] | None, given: list[str] | None
) -> tuple[np.ndarray, list[str] | None]:
    """Final labels, int64 of shape (N,), and the names for classes.txt.

    Classes that have images are numbered 0..K-1 in the order of their labels; labels without names that change
    on the way become the names. With ``given`` names, classes keep the numbers that they have there; labels
    without names are matched by name too, or are positions there: see ``are_numbers``.
    """
    kept_K, packed_N = np.unique(labels_N, return_inverse=True)
    names = [str(label) if classes is None else classes[label] for label in kept_K.tolist()]
    if given is None:
        unchanged = classes is None and (kept_K == np.arange(len(kept_K))).all()
        return packed_N, None if unchanged else names
    if classes is None and are_numbers(names, given):
        if kept_K[0] < 0 or kept_K[-1] >= len(given):
            raise UserError(
                f"classes: labels go from {kept_K[0]} to {kept_K[-1]}, but {len(given)} classes are named, from 0 on; "
                "give the file that belongs to these labels"
            )
        return labels_N.astype(np.int64), given
    number_of = {name: number for number, name in enumerate(given)}
    unknown = [name for name in names if name not in number_of]
    if unknown:
        raise UserError(
            f"classes: {unknown[0]!r}{_and_others(unknown)} is not among the {len(given)} named there"
            f"{near_match(unknown[0], given[:10_000])}; leave its images out or name it"
        )
    return np.array([number_of[name] for name in names], np.int64)[packed_N], given


def are_numbers(labels: Iterable[str], known: Sequence[str] | None = None) -> bool:
    """Whether labels are mere numbers: all written as whole numbers (007 is a name), and no names of classes.

    ``known`` are the names of the classes. Where they consist of digits themselves, or one of them is among the
    labels, all labels are names: one that is not known must not turn the others into positions.
    """
    different = set(labels)
    if known is not None and (all(map(_DIGITS.fullmatch, known)) or not different.isdisjoint(known)):
        return False
    return all(_WHOLE.fullmatch(label) for label in different)


def read_names(path: str | Path, option: str) -> list[str]:
    """The lines of a file, each a class name. Raises UserError if it cannot be read, or names a class twice."""
    lines = [line.strip() for line in _lines(path, option)]
    if not lines:
        raise UserError(f"{option}: {path} is empty; it needs a class name a line")
    name, count = Counter(lines).most_common(1)[0]
    if count > 1:
        raise UserError(f"{option}: {path} has {name!r} {count} times; each class needs a name of its own")
    return lines


def _lines(path: str | Path, option: str) -> list[str]:
    """The lines of a text file, without empty ones at its end."""
    return read_text(Path(path), option).rstrip().splitlines()


def _names_by_number(path: str | Path) -> dict[int, str]:
    """Class names by the numbers that a label file uses, as ILSVRC's map_clsloc.txt has them."""
    found = [_NAME_AND_NUMBER.fullmatch(line) for line in read_names(path, "label_names")]
    names = {int(pair[2]): pair[1] for pair in found if pair}
    if len(set(names.values())) < len(found):
        raise UserError(
            f"label_names: {path} must have lines 'name number', each name and each number once; mend it"
        )
    return names


def _names_of_files(path: str | Path, files: Sequence[str]) -> list[str]:
    """What a label file says of each file: a name or a number."""
    lines = _lines(path, "labels")
    try:
        labels = _by_file_name(path, lines, files)
    except csv.Error as error:
        raise UserError(f"labels: {path} cannot be read as a table: {first_line(error)}; mend it") from None
    if labels is None:
        # Each line of a table of other images would be a class of its own.
        if len(lines) > 1 and len(set(lines)) == len(lines) and all("," in line for line in lines):
            raise UserError(
                f"labels: {path} is a table, but no image is called {lines[1].partition(',')[0].strip()!r}; give the "
                f"file that belongs to these images; it needs {_FORMS}"
            )
        if len(lines) != len(files):
            raise UserError(
                f"labels: {path} has {len(lines)} lines for {len(files)} images; it needs {_FORMS}"
            )
        label_of = dict(zip(sorted(files), lines, strict=True))
        labels = [label_of[file].strip() for file in files]
    if "" in labels:
        raise UserError(f"labels: {path} has an empty label; it needs {_FORMS}")
    return labels


def _by_file_name(path: str | Path, lines: Sequence[str], files: Sequence[str]) -> list[str] | None:
    """Labels by lines that begin with a file name, with its suffix or without, or None if the lines do not."""
    row_of = _rows_by_name(files)
    begun = [(split, fields) for line in lines[:2] for split in _SPLITS if len(fields := split(line)) > 1]
    split = next((split for split, fields in begun if fields[0].strip() in row_of), None)
    if split is None:
        return None
    labels = [""] * len(files)
    for number, line in enumerate(lines, 1):
        file, label, *_ = [field.strip() for field in (*split(line), "", "")]
        row = row_of.get(file)  # None: a header, or an image that is not there
        if row is not None:
            if not label or labels[row] not in ("", label):
                raise UserError(
                    f"labels: {path} line {number} has {'another' if label else 'no'} label for {file}; mend it"
                )
            labels[row] = label
    missing = [file for file, label in zip(files, labels, strict=True) if not label]
    if missing:
        raise UserError(
            f"labels: {path} has no label for {len(missing)} images, {missing[0]} the first; add them"
        )
    boxed = [_BOXED.fullmatch(label) for label in labels]
    return [found[1] for found in boxed if found] if all(boxed) else labels


def _rows_by_name(files: Sequence[str]) -> dict[str, int | None]:
    """Rows by file names, with directories and suffixes or without: None where one stands for several rows."""
    rows: dict[str, int | None] = {}
    for row, file in enumerate(files):
        bare = file.rpartition("/")[2]
        for name in {bare, bare.rpartition(".")[0], file.rpartition(".")[0]}:
            rows[name] = None if name in rows else row
    return rows | {file: row for row, file in enumerate(files)}


def _and_others(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
