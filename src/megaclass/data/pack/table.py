"""A table of paths and labels, ``.csv`` or ``.tsv``, as a source."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megaclass.data.dataset import first_line
from megaclass.data.folder import IMAGE_SUFFIXES, read_file
from megaclass.data.pack.labels import are_numbers, number_names
from megaclass.data.pack.source import Source, SourceOptions
from megaclass.errors import UserError

_PATHS = ("path", "file", "filename", "file_name", "image", "image_path")
_LABELS = ("label", "class", "class_name", "identity", "target")


def open_table(path: Path, options: SourceOptions, _known: list[str] | None) -> Source:
    """The images that a table names; paths are relative to the root of options, or else to where the table lies.

    Labels are numbers if all are written as whole numbers. Raises UserError.
    """
    base = Path(options.root) if options.root is not None else path.parent
    if not base.is_dir():
        raise UserError(f"root: {base} is not a directory; name the one that the paths of {path} begin at")
    try:
        rows = list(_rows(path, base))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table: {first_line(error)}; mend it") from None
    if not rows:
        raise UserError(f"{path} names no images; it needs a line 'path,label' for each")
    names = [name for _, name in rows]
    classes: list[str] | None = None
    if are_numbers(names):
        labels = np.array([int(name) for name in names], np.int64)
    else:
        labels, classes = number_names(names)

    return Source(
        labels=labels,
        classes=classes,
        read=lambda row: read_file(base / rows[row][0]),
        describe=lambda row: str(base / rows[row][0]),
    )


def _rows(path: Path, base: Path) -> Iterator[tuple[str, str]]:
    """Path and label of each line but the header."""
    tabs = path.suffix.lower() == ".tsv"
    columns: tuple[int, int] | None = None
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(
            file,
            delimiter="\t" if tabs else ",",
            # A lone quote in a .tsv is a letter: the format has no other way to write one.
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            skipinitialspace=True,
        )
        for line in reader:
            fields = [field.strip() for field in line]
            if not any(fields):
                continue
            if columns is None:
                columns = _header(fields)
                if columns is not None:
                    continue
                columns = (0, 1)
                # What else it may be is a header in other words: no class may come of that.
                is_image = fields[0].lower().endswith(IMAGE_SUFFIXES) or (base / fields[0]).is_file()
                if len(fields) != 2 or not is_image:
                    raise UserError(
                        f"{path} line {reader.line_num} is neither 'path,label' of an image nor a header that names "
                        "the columns path and label; mend it"
                    )
            if len(fields) <= max(columns) or not all(fields[column] for column in columns):
                raise UserError(f"{path} line {reader.line_num} lacks a path or a label; mend it")
            yield fields[columns[0]], fields[columns[1]]


def _header(fields: list[str]) -> tuple[int, int] | None:
    """The columns of path and label, if the line names them."""
    low = [field.lower() for field in fields]
    path, label = (
        next((low.index(name) for name in names if name in low), None) for names in (_PATHS, _LABELS)
    )
    return None if path is None or label is None else (path, label)
