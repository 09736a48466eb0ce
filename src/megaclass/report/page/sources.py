"""The raw rows that a report is made from: each knows the line that it stands in."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from megaclass.errors import UserError
from megaclass.report.page.machines import Identity, identity
from megaclass.report.page.words import number
from megaclass.results.rows import Row, read_rows

_DEEPEST = 50  # containers in one another: what reads a row goes down as many times


@dataclass(frozen=True, eq=False)
class Source:
    """A row and where it stands. Two sources are equal only where they are the same line."""

    path: Path
    line: int  # from 1
    row: Row
    number: int  # its place among all rows of the report, from 1

    @cached_property
    def machine(self) -> Identity:
        return identity(self.row.environment)

    @cached_property
    def samples_ms(self) -> list[float]:
        """Those of the timed steps that are times."""
        return [found for value in self.row.samples_ms if (found := number(value)) is not None and found > 0]

    @property
    def ok(self) -> bool:
        return self.row.status == "ok"

    def file_from(self, directory: Path) -> str:
        """The file as seen from where the report lies, with slashes."""
        return _relative(self.path, directory)


@lru_cache(maxsize=1024)
def _relative(path: Path, directory: Path) -> str:
    return Path(os.path.relpath(path, directory.resolve())).as_posix()


def read_sources(paths: Sequence[str | Path], first: int = 1) -> tuple[list[Source], list[Path]]:
    """All rows of the files and directories, in this order and each file once, and the files that hold something else.

    Raises UserError: nothing there, not a row, a newer schema, no row at all.
    """
    sources: list[Source] = []
    strangers: list[Path] = []
    refused: UserError | None = None
    for path in _files(paths):
        try:
            rows = read_rows(path)
        except UserError as error:
            if not str(error).startswith(f"{path} line 1: not a"):
                raise
            strangers.append(path)  # beside results lie other JSON lines, such as events
            refused = refused or error
            continue
        for line, row in enumerate(rows, start=1):
            if _depth(vars(row)) > _DEEPEST:
                raise UserError(
                    f"{path} line {line}: not a row of a benchmark: nested more than {_DEEPEST} deep"
                )
            sources.append(Source(path.resolve(), line, row, first + len(sources)))
    if not sources and refused is not None and all(Path(path).is_file() for path in paths):
        raise refused
    if not sources:
        raise UserError(
            f"{_listed(paths)}: no row of a benchmark; `megaclass bench ... --output FILE` writes them"
        )
    return sources, strangers


def _files(paths: Sequence[str | Path]) -> Iterable[Path]:
    """The files. What is none, such as a pipe, would be waited for: UserError."""
    seen = set()
    for path in map(Path, paths):
        try:
            found = sorted(filter(Path.is_file, path.glob("*.jsonl"))) if path.is_dir() else [path]
            if found == [path] and path.exists() and not path.is_file():
                raise UserError(f"{path}: neither a file nor a directory")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        for file in found:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _depth(value: Any) -> int:
    """How many containers lie in one another."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in inner if isinstance(item, dict | list)]
    return depth


def _listed(paths: Sequence[str | Path]) -> str:
    return ", ".join(map(str, paths))
