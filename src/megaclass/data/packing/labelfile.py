"""Labels of images that lie in no class directories: ``--labels FILE``.

ILSVRC2012_validation_ground_truth.txt has a number a line, in the order of the sorted file names. The numbers are
ILSVRC's ids, which count from 1 in an order of their own: taken for positions among the sorted names, they would
give a pack that trains and is wrong. So numbers are taken only with a file that names them.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from megaclass.data.dataset import first_line
from megaclass.data.packing.names import are_numbers, names_by_number, read_lines
from megaclass.errors import UserError

_FORMS = "a class name a line in the order of the sorted file names, or lines 'file name,class name'"
_SPLITS: tuple[Callable[[str], list[str]], ...] = (
    lambda line: line.split("\t"),
    lambda line: next(csv.reader([line], skipinitialspace=True), []),
    lambda line: line.split(None, 1),
)


def class_names(
    path: Path, files: Sequence[str], label_names: Path | None, known: Sequence[str] | None
) -> list[str]:
    """The class name of each of the ``files`` (paths with forward slashes), by the label file at ``path``.

    ``label_names`` is needed for numbers, see ``names_by_number``; ``known`` are the names of all classes, where
    they are given. Raises UserError, which says what is missing.
    """
    lines = read_lines(path, "labels")
    try:
        labels = _by_file_name(path, lines, files)
    except csv.Error as error:
        raise UserError(f"labels: {path} cannot be read as a table: {first_line(error)}; mend it") from None
    if labels is None:
        if len(lines) != len(files):
            raise UserError(
                f"labels: {path} has {len(lines)} lines for {len(files)} images; it needs {_FORMS}"
            )
        in_order = sorted(range(len(files)), key=files.__getitem__)
        labels = [""] * len(files)
        for row, line in zip(in_order, lines, strict=True):
            labels[row] = line.strip()
    if "" in labels:
        raise UserError(f"labels: {path} has an empty label; it needs {_FORMS}")
    if label_names is None and are_numbers(labels, known):
        raise UserError(
            f"labels: {path} holds numbers; add --label-names FILE, which names them: a name a line in their order, or "
            "lines 'name number' as in map_clsloc.txt (ILSVRC's ids count from 1 and are not in the order of the "
            f"names), or give {_FORMS}"
        )
    if label_names is None:
        return labels
    if not are_numbers(labels):
        raise UserError(f"label_names is for numbers, but {path} holds names; leave it out")
    numbers = [int(label) for label in labels]
    names = names_by_number(label_names, numbers)
    return [names[number] for number in numbers]


def _by_file_name(path: Path, lines: Sequence[str], files: Sequence[str]) -> list[str] | None:
    """Labels by lines that begin with a file name, or None if the lines do not."""
    row_of = {file.rpartition("/")[2]: row for row, file in enumerate(files)}
    if len(row_of) < len(files):
        row_of = {}  # the same name in several directories tells nothing
    row_of |= {file: row for row, file in enumerate(files)}
    split = next((s for line in lines[:2] for s in _SPLITS if (s(line) or [""])[0].strip() in row_of), None)
    if split is None:
        return None
    labels = [""] * len(files)
    for number, line in enumerate(lines, 1):
        file, *rest = [*split(line), ""]
        row = row_of.get(file.strip())  # a header, or an image that the archive has not
        if row is not None:
            label = rest[0].strip()
            if not label or labels[row] not in ("", label):
                raise UserError(
                    f"labels: {path} line {number} has {'another' if label else 'no'} label for {file.strip()}; mend it"
                )
            labels[row] = label
    missing = [file for file, label in zip(files, labels, strict=True) if not label]
    if missing:
        raise UserError(
            f"labels: {path} has no label for {len(missing)} images, {missing[0]} the first; add them"
        )
    return labels
