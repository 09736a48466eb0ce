"""The raw rows that a report is made from: each knows the line that it stands in."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from megaclass.errors import UserError
from megaclass.report.machines import Identity, identity
from megaclass.report.words import effort, key_of
from megaclass.results.rows import Row, read_rows
from megaclass.results.stats import interval
from megaclass.results.verdict import BUSY_PERCENT

BUSY = (
    f"other programs were busy: some task waited for a processor in more than {BUSY_PERCENT:g}% of the time"
)
_DEEPEST = 50  # containers in one another: what reads a row goes down as many times
_LARGEST = 1e100  # beyond, nothing was measured, and sums and quotients run out of a float


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

    @property
    def ok(self) -> bool:
        return self.row.status == "ok"

    @property
    def busy(self) -> tuple[str, ...]:
        """The note on a number that was measured while other programs had work."""
        return (BUSY,) if (self.row.cpu_wait_percent or 0.0) > BUSY_PERCENT else ()

    @cached_property
    def case_key(self) -> str:
        """Equal for what is compared, however often it was measured."""
        case = {key: value for key, value in self.row.case.items() if key not in effort()}
        return key_of([self.row.benchmark, self.row.implementation, case])

    @property
    def age(self) -> tuple[str, int]:
        """Rises with the time of measurement."""
        return str(self.row.measured_at), self.number

    @lru_cache(maxsize=8)  # noqa: B019 -- several tables ask for the same one
    def step_interval(self, statistic: str) -> tuple[float, float]:
        """That of ``mean`` or a percentile (``p50``) of the steps, by resampling."""
        return interval(self.row.samples_ms, None if statistic == "mean" else float(statistic[1:]))

    def file_from(self, directory: Path) -> str:
        """The file as seen from where the report lies, with slashes."""
        return Path(os.path.relpath(self.path, directory.resolve())).as_posix()


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
            _check(row, f"{path} line {line}: not a row of a benchmark")
            sources.append(Source(path.resolve(), line, row, first + len(sources)))
    if not sources:
        none = f"{', '.join(map(str, paths))}: no row of a benchmark; `megaclass bench ... --output FILE` writes them"
        raise refused or UserError(none)
    return sources, strangers


def _files(paths: Sequence[str | Path]) -> list[Path]:
    """The files, each once. What is none, such as a pipe, would be waited for: UserError."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        try:
            files = sorted(filter(Path.is_file, path.glob("*.jsonl"))) if path.is_dir() else [path]
            if path.exists() and not path.is_dir() and not path.is_file():
                raise UserError(f"{path}: neither a file nor a directory")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        for file in files:
            found.setdefault(file.resolve(), file)
    return [*found.values()]


def _check(row: Row, what: str) -> None:
    """UserError: what cannot be reckoned with, as anyone may have written a row. Nothing below looks for it again."""
    level: list[Any] = [vars(row)]
    for _ in range(_DEEPEST):
        inner = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        if any(isinstance(n, int | float) and n and not 1 / _LARGEST <= abs(n) <= _LARGEST for n in inner):
            raise UserError(f"{what}: a number beyond {_LARGEST:g}, or next to nothing")
        level = [item for item in inner if isinstance(item, dict | list)]
    if level:
        raise UserError(f"{what}: nested more than {_DEEPEST} deep")
    if not all(time > 0 for time in row.samples_ms):
        raise UserError(f"{what}: not all of samples_ms are times above 0")
