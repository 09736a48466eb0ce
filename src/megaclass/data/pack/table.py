"""A table of paths and labels, ``.csv`` or ``.tsv``, as a source."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megaclass.data.dataset import first_line
from megaclass.data.folder import read_file
from megaclass.data.pack.labels import are_numbers
from megaclass.data.pack.source import Source
from megaclass.errors import UserError

_PATHS = ("path", "file", "filename", "file_name", "image", "image_path")
_LABELS = ("label", "class", "class_name", "identity", "target")


def open_table(path: Path, root: str | None) -> Source:
    """The images that a table names; paths are relative to ``root``, or else to where the table lies.

    Labels are numbers if all are written as whole numbers. Raises UserError.
    """
    base = Path(root) if root is not None else path.parent
    if not base.is_dir():
        raise UserError(f"root: {base} is not a directory; name the one that the paths of {path} begin at")
    paths: list[str] = []
    names: list[str] = []
    for file, label in _rows(path):
        paths.append(file)
        names.append(sys.intern(label))
    if not paths:
        raise UserError(f"{path} names no images; it needs a line 'path,label' for each")
    classes: list[str] | None = None
    if are_numbers(names):
        labels = np.array([int(name) for name in names], np.int64)
    else:
        different, labels = np.unique(np.array(names, object), return_inverse=True)
        classes = different.tolist()

    return Source(
        labels=labels,
        classes=classes,
        read=lambda row: read_file(base / paths[row]),
        describe=lambda row: str(base / paths[row]),
    )


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """Path and label of each line but the header."""
    tabs = path.suffix.lower() == ".tsv"
    # A lone quote in a .tsv is a letter: the format has no other way to write one.
    style = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        if tabs
        else {"delimiter": ",", "skipinitialspace": True}
    )
    columns: tuple[int, int] | None = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, **style)  # type: ignore[arg-type]
            for fields in reader:
                if not any(fields):
                    continue
                if columns is None:
                    columns = _header(fields)
                    if columns is not None:
                        continue
                    columns = (0, 1)
                    if len(fields) != 2:
                        raise UserError(
                            f"{path} line {reader.line_num}: {len(fields)} fields; 'path,label' is needed, or a header "
                            "that names the columns path and label"
                        )
                if len(fields) <= max(columns):
                    raise UserError(
                        f"{path} line {reader.line_num}: {len(fields)} fields, too few; mend the line"
                    )
                found, label = (fields[column].strip() for column in columns)
                if not found or not label:
                    raise UserError(
                        f"{path} line {reader.line_num}: the {'label' if found else 'path'} is empty; mend the line"
                    )
                yield found, label
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table: {first_line(error)}; mend it") from None


def _header(fields: list[str]) -> tuple[int, int] | None:
    """The columns of path and label, if the line names them."""
    low = [field.strip().lower() for field in fields]
    found = [next((low.index(name) for name in names if name in low), None) for names in (_PATHS, _LABELS)]
    return None if found[0] is None or found[1] is None else (found[0], found[1])
