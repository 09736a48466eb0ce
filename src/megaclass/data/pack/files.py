"""Files as a source: a folder with a directory a class, one beside a file of labels, or those that a table names."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megaclass.data.folder import IMAGE_SUFFIXES, FolderDataset, images_under, read_file, tell_left_out
from megaclass.data.pack.labels import are_numbers, label_by_file, number_names, read_table
from megaclass.data.pack.source import Source
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError


def open_folder(
    root: Path,
    known: list[str] | None,
    class_depth: int = 1,
    labels: str | Path | None = None,
    label_names: str | Path | None = None,
) -> Source:
    """The images of a folder. ``known``: the names of all classes, if they were given. Raises UserError."""
    if labels is None:
        folder = FolderDataset(root, class_depth)
        return Source(folder.labels(), folder.classes, lambda row: folder.read(row).encoded, folder.describe)
    others: Counter[str] = Counter()
    names = images_under(root, others=others)
    tell_left_out(root, others)
    if not names:
        raise UserError(f"{root} holds no images")
    return _of_files(root, names, *label_by_file(names, known, labels, label_names))


def open_records(path: Path, _known: list[str] | None) -> Source:
    """The images of a record set, with their labels and classes. Raises UserError."""
    records = RecordDataset(path)
    return Source(records.labels(), records.classes, lambda row: records.read(row).encoded, records.describe)


def open_table(path: Path, _known: list[str] | None, root: str | Path | None = None) -> Source:
    """The images that a ``.csv`` or ``.tsv`` names; paths are relative to ``root``, or else to the table.

    Labels are numbers if all are written as whole numbers. Raises UserError.
    """
    base = Path(root) if root is not None else path.parent
    if not base.is_dir():
        raise UserError(f"--root: {base} is not a directory; name the one that the paths of {path} begin at")
    # Unlike Path's, this one says no to a name that is too long for any file.
    rows = read_table(
        path,
        "source",
        lambda name: name.lower().endswith(IMAGE_SUFFIXES) or os.path.isfile(base / name),  # noqa: PTH113
    )
    if not rows:
        raise UserError(f"{path} names no images; it needs a line 'path,label' for each")
    names = [label for _, _, label in rows]
    files = [file for _, file, _ in rows]
    if are_numbers(names):
        return _of_files(base, files, np.array([int(name) for name in names], np.int64), None)
    return _of_files(base, files, *number_names(names))


def _of_files(root: Path, names: Sequence[str], labels: np.ndarray, classes: list[str] | None) -> Source:
    return Source(
        labels,
        classes,
        read=lambda row: read_file(root / names[row]),
        describe=lambda row: str(root / names[row]),
    )
