"""Labels of images that lie in no class directories: ``--labels FILE``.

ILSVRC2012_validation_ground_truth.txt has a number a line, in the order of the sorted file names. The numbers are
ILSVRC's ids, which count from 1 in an order of their own: taken for positions among the sorted names, they would
give a pack that trains and is wrong. So numbers are taken only with a file that names them.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from megaclass.data.dataset import first_line
from megaclass.data.pack.names import are_numbers, names_by_number, read_lines
from megaclass.errors import UserError

_FORMS = "a class name a line in the order of the sorted file names, or lines 'file name,class name'"
_SPLITS: tuple[Callable[[str], list[str]], ...] = (
    lambda line: line.split("\t"),
    lambda line: next(csv.reader([line], skipinitialspace=True), []),
    lambda line: line.split(None, 1),
)
# As Kaggle has ILSVRC's: a class with the corners of its box, perhaps several times.
_BOX = r"(?:\s+-?[0-9]+(?:\.[0-9]+)?){4}"
_BOXED = re.compile(rf"(\S+){_BOX}(?:\s+\1{_BOX})*", re.ASCII)


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
        _refuse_other_files(path, lines)
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
    """Labels by lines that begin with a file name, with its suffix or without, or None if the lines do not."""
    row_of = _rows_by_name(files)
    stem_of = _rows_by_name([file.rpartition(".")[0] for file in files])

    def names_an_image(fields: list[str]) -> bool:
        first = fields[0].strip() if fields else ""
        # A number alone is a label, also where an image 1.jpg is there.
        return first in row_of or (len(fields) > 1 and first in stem_of)

    split = next((s for line in lines[:2] for s in _SPLITS if names_an_image(s(line))), None)
    if split is None:
        return None
    row_of = stem_of | row_of
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
    boxed = [_BOXED.fullmatch(label) for label in labels]
    return [found[1] for found in boxed if found] if all(boxed) else labels


def _rows_by_name(names: Sequence[str]) -> dict[str, int]:
    """Rows by names, with directories and without: none where one name stands for several rows."""
    counts = Counter(name.rpartition("/")[2] for name in names)
    rows = (
        {} if len(counts) < len(names) else {name.rpartition("/")[2]: row for row, name in enumerate(names)}
    )
    whole = Counter(names)
    return rows | {name: row for row, name in enumerate(names) if whole[name] == 1}


def _refuse_other_files(path: Path, lines: Sequence[str]) -> None:
    """UserError for a table of other images: each of its lines would be a class of its own."""
    if len(lines) > 1 and len(set(lines)) == len(lines) and all("," in line for line in lines):
        name = lines[1].partition(",")[0].strip()
        raise UserError(
            f"labels: every line of {path} is another one, as in a table, but no image is called {name!r}; give the "
            f"file that belongs to these images; it needs {_FORMS}"
        )
