"""Files of records, one JSON object a line, appended to as things happen: events of a run, rows of a benchmark.

The standard library alone reads them. JSON has no NaN, so a number that is not finite is written as null and read
as None. A last line without its line feed was cut by a kill: readers pass over it, writers drop it.
"""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from megaclass.errors import UserError

T = TypeVar("T")


class LineFile:
    """Appends records to a file, each in one piece: a process that is killed loses no record but the last.

    Without a path records go nowhere. OSError where the disk refuses a record: what it took of it is cut off again,
    at once or, where the disk refuses that too, before the next one.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.file: io.FileIO | None = None
        self._whole_bytes, self._is_torn = 0, False

    def open(self) -> io.FileIO:
        assert self.path is not None
        self.file = self.path.open("ab", buffering=0)
        return self.file

    def append(self, *records: dict[str, Any]) -> None:
        """Append all of them, or none."""
        if self.path is None:
            return
        file = self.file or self.open()
        rest = "".join(f"{json.dumps(plain(one), allow_nan=False)}\n" for one in records).encode()
        self._mend(file)
        self._whole_bytes, self._is_torn = os.fstat(file.fileno()).st_size, True
        try:
            while rest:
                rest = rest[file.write(rest) :]
            self._is_torn = False
        finally:
            with contextlib.suppress(OSError):
                self._mend(file)

    def _mend(self, file: io.FileIO) -> None:
        if self._is_torn:
            file.truncate(self._whole_bytes)
            self._is_torn = False

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Of each whole line: where it stands, its object, and the offset in bytes at which it ends."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    end = 0
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        end += len(line) + 1
        where = f"{path} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a line of JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: not a JSON object")
        yield where, record, end


def check_version(version: Any, newest: int, where: str) -> None:
    if isinstance(version, int) and version > newest:
        raise UserError(f"{where}: written with schema {version}, and this megaclass reads {newest}: update it")


def build(kind: type[T], record: dict[str, Any], where: str, what: str) -> T:
    """``kind(**record)`` of a dataclass. UserError unless the record has its fields, each of the annotated type."""
    hints, required = _fields(kind)  # type: ignore[arg-type]  # a class is hashable
    for name in [*required, *record]:
        if name not in record or name not in hints:
            raise UserError(f"{where}: {what} {'lacks' if name in hints else 'has an unknown'} {name!r}")
        if not _fits(record[name], hints[name]):
            raise UserError(f"{where}: {name} of {what} is {record[name]!r:.80}, not {hints[name]}")
    return kind(**record)


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """The types of a dataclass's fields, and the names of those that must be given."""
    missing = dataclasses.MISSING
    required = [f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]
    return typing.get_type_hints(kind), required


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the annotated type, and all that it holds too."""
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, typing.get_origin(hint) or hint) or isinstance(value, bool):
        return False
    held = typing.get_args(hint)[-1:]
    items = value.values() if isinstance(value, dict) else value
    return all(_fits(item, kind) for kind in held for item in items)


def plain(value: Any) -> Any:
    """The value in JSON's types: arrays as lists, their scalars as numbers, non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
