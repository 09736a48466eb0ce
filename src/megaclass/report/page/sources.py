"""The raw rows that a report is made from: each knows the line that it stands in."""

import os
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megaclass.errors import UserError
from megaclass.report.page.machines import Identity, identity
from megaclass.rows import Row, read_rows

_SHAPES = {field: typing.get_origin(hint) or hint for field, hint in typing.get_type_hints(Row).items()}


@dataclass(frozen=True, eq=False)
class Source:
    """A row and where it stands. Two sources are equal only where they are the same line."""

    path: Path
    line: int  # from 1
    row: Row
    number: int  # its place among all rows of the report, from 1

    @property
    def machine(self) -> Identity:
        return identity(self.row.environment)

    @property
    def ok(self) -> bool:
        return self.row.status == "ok"

    def file_from(self, directory: Path) -> str:
        """The file as seen from where the report lies, with slashes."""
        return Path(os.path.relpath(self.path, directory.resolve())).as_posix()


def read_sources(paths: Sequence[str | Path], first: int = 1) -> tuple[list[Source], list[Path]]:
    """All rows of the files and directories, in this order and each file once, and the files of the directories
    that hold something else.

    Raises UserError: nothing there, not a row, a newer schema, no row at all.
    """
    sources: list[Source] = []
    strangers: list[Path] = []
    for path, named in _files(paths):
        try:
            rows = read_rows(path)
        except UserError as error:
            if named or not str(error).startswith(f"{path} line 1: not a"):
                raise
            strangers.append(path)  # a directory of results may hold other JSON lines, such as events
            continue
        for line, row in enumerate(rows, start=1):
            _require_shape(row, f"{path} line {line}")
            sources.append(Source(path.resolve(), line, row, first + len(sources)))
    if not sources:
        raise UserError(
            f"{_listed(paths)}: no row of a benchmark; `megaclass bench ... --output FILE` writes them"
        )
    return sources, strangers


def _require_shape(row: Row, where: str) -> None:
    """What else a reader may rely on: that mappings are mappings, lists lists, and names names."""
    for field, kind in _SHAPES.items():
        if kind in (dict, list, str) and not isinstance(getattr(row, field), kind):
            raise UserError(f"{where}: not a row of a benchmark: {field} is not a {kind.__name__}")


def _files(paths: Sequence[str | Path]) -> Iterable[tuple[Path, bool]]:
    """The files, and whether each was named itself."""
    seen = set()
    for path in map(Path, paths):
        try:
            found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        for file in found:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file, file == path


def _listed(paths: Sequence[str | Path]) -> str:
    return ", ".join(map(str, paths))
