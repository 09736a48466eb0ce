"""Labels and the names of classes: from files of labels, by number or by name, into classes.txt.

ILSVRC2012_validation_ground_truth.txt has a number a line, in the order of the sorted file names. The numbers are
ILSVRC's ids, which count from 1 in an order of their own: taken for positions among the sorted names, they would
give a pack that trains and is wrong. So numbers are taken only with a file that names them.
"""

import csv
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from megaclass.data.dataset import read_text
from megaclass.errors import UserError, first_line, near_match

_FORMS = "a class name a line in the order of the sorted file names, or lines 'file name,class name'"
# What the two columns are called where a table has a header that names them.
_PATHS = ("path", "file", "filename", "file_name", "image", "image_path")
_LABELS = ("label", "class", "class_name", "identity", "target")
_Split = Callable[[str], list[str]]
_Form = tuple[_Split, tuple[int, int], int]
_SPLITS: tuple[_Split, ...] = (
    lambda line: line.split("\t"),  # a lone quote is a letter: the format has no other way to write one
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
    files: Sequence[str], known: Sequence[str] | None, labels: str | Path, label_names: str | Path | None
) -> tuple[np.ndarray, list[str]]:
    """Labels, int64, and class names of ``files`` (paths with forward slashes) by the files that the options name.

    ``known``: the names of all classes, where they are given. Raises UserError, which says what is missing.
    """
    names = _names_of_files(labels, files)
    if label_names is None:
        if are_numbers(names, known):
            raise UserError(
                f"--labels: {labels} holds numbers; add --label-names FILE with lines 'name number', as "
                "map_clsloc.txt (ILSVRC's ids count from 1 and are not in the order of the names)"
            )
        return number_names(names)
    if not are_numbers(names):
        raise UserError(f"--label-names is for numbers, but {labels} holds names; leave it out")
    by_number = _names_by_number(label_names)
    unknown = sorted({int(name) for name in names} - by_number.keys())
    if unknown:
        raise UserError(
            f"--label-names: {label_names} has no name for {unknown[0]}{_and_others(unknown)}; give the file "
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
                f"--classes: labels go from {kept_K[0]} to {kept_K[-1]}, but {len(given)} classes are named, from 0 "
                "on; give the file that belongs to these labels"
            )
        return labels_N.astype(np.int64), given
    number_of = {name: number for number, name in enumerate(given)}
    unknown = [name for name in names if name not in number_of]
    if unknown:
        raise UserError(
            f"--classes: {unknown[0]!r}{_and_others(unknown)} is not among the {len(given)} named there"
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
    lines = [line.strip() for line in read_text(Path(path), option).rstrip().splitlines()]
    if not lines:
        raise UserError(f"{option}: {path} is empty; it needs a class name a line")
    name, count = Counter(lines).most_common(1)[0]
    if count > 1:
        raise UserError(f"{option}: {path} has {name!r} {count} times; each class needs a name of its own")
    return lines


def read_table(
    path: str | Path, option: str, is_file: Callable[[str], bool], any_header: bool = False
) -> list[tuple[int, str, str]]:
    """Number, file and label of each line of a table; none where its lines do not begin with a file.

    Fields lie between tabs, between commas as CSV has them, or a space ends the file. The first line may be a header
    that names the columns, and with ``any_header`` any line that begins with no file. Raises UserError.
    """
    lines = read_text(Path(path), option).splitlines()
    rows = []
    try:
        split, columns, start = _form(lines[:2], is_file, any_header)
        for number, line in enumerate(lines[start:], start + 1):
            fields = [field.strip() for field in split(line)]
            if not any(fields):
                continue
            if len(fields) <= max(columns) or not all(fields[column] for column in columns):
                raise UserError(f"{path} line {number} lacks a path or a label; mend it")
            rows.append((number, fields[columns[0]], sys.intern(fields[columns[1]])))
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a table: {first_line(error)}; mend it") from None
    return rows


def _form(head: Sequence[str], is_file: Callable[[str], bool], any_header: bool) -> _Form:
    """How lines are split, the columns of file and label, and how many lines are header; of no table, all."""
    for split in _SPLITS:
        rows = [[field.strip() for field in split(line)] for line in head]
        low = [field.lower() for field in rows[0]] if rows else []
        path, label = (next((low.index(name) for name in names if name in low), -1) for names in (_PATHS, _LABELS))
        if min(path, label) >= 0:
            return split, (path, label), 1
        for header, fields in enumerate(rows[: 1 + any_header]):
            if (len(fields) == 2 or (header and len(fields) > 2)) and is_file(fields[0]):
                return split, (0, 1), header
    return _SPLITS[0], (0, 1), sys.maxsize


def _names_by_number(path: str | Path) -> dict[int, str]:
    """Class names by the numbers that a label file uses, as ILSVRC's map_clsloc.txt has them."""
    found = [_NAME_AND_NUMBER.fullmatch(line) for line in read_names(path, "--label-names")]
    names = {int(pair[2]): pair[1] for pair in found if pair}
    if len(set(names.values())) < len(found):
        raise UserError(f"--label-names: {path} must have lines 'name number', each name and each number once; mend it")
    return names


def _names_of_files(path: str | Path, files: Sequence[str]) -> list[str]:
    """What a label file says of each file: a name or a number."""
    row_of = _rows_by_name(files)
    rows = read_table(path, "--labels", row_of.__contains__, any_header=True)
    if not rows:
        return _in_order(path, files)
    labels = [""] * len(files)
    for number, file, label in rows:
        row = row_of.get(file)  # None: an image that is not there
        if row is not None:
            if labels[row] not in ("", label):
                raise UserError(f"--labels: {path} line {number} has another label for {file}; mend it")
            labels[row] = label
    missing = [file for file, label in zip(files, labels, strict=True) if not label]
    if missing:
        raise UserError(f"--labels: {path} has no label for {len(missing)} images, {missing[0]} the first; add them")
    boxed = [_BOXED.fullmatch(label) for label in labels]
    return [found[1] for found in boxed if found] if all(boxed) else labels


def _in_order(path: str | Path, files: Sequence[str]) -> list[str]:
    """The lines as the labels of the sorted files."""
    lines = [line.strip() for line in read_text(Path(path), "--labels").rstrip().splitlines()]
    # Each line of a table of other images would be a class of its own.
    is_table = len(lines) > 1 and len(set(lines)) == len(lines) and all("," in line for line in lines)
    if is_table or len(lines) != len(files) or "" in lines:
        raise UserError(
            f"--labels: {path} has {len(lines)} lines, which are no labels of {len(files)} images; it needs {_FORMS}"
        )
    label_of = dict(zip(sorted(files), lines, strict=True))
    return [label_of[file] for file in files]


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
