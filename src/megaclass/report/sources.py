"""The raw rows that a report is made from: each knows the line that it stands in."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from megaclass.errors import UserError
from megaclass.report.machines import Identity, identity
from megaclass.report.words import effort, key_of, number
from megaclass.results.rows import Row, read_rows
from megaclass.results.stats import interval
from megaclass.results.verdict import BUSY_PERCENT, Steps

BUSY = (
    f"other programs were busy: some task waited for a processor in more than {BUSY_PERCENT:g}% of the time"
)
_DEEPEST = 50  # containers in one another: what reads a row goes down as many times
_MOST_JUDGED = 20_000


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

    @property
    def busy(self) -> tuple[str, ...]:
        """The note on a number that was measured while other programs had work."""
        return (BUSY,) if (number(self.row.cpu_wait_percent) or 0.0) > BUSY_PERCENT else ()

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
        return interval(self.samples_ms, None if statistic == "mean" else float(statistic[1:]))

    def file_from(self, directory: Path) -> str:
        """The file as seen from where the report lies, with slashes."""
        return _relative(self.path, directory)


@lru_cache(maxsize=1024)
def _relative(path: Path, directory: Path) -> str:
    return Path(os.path.relpath(path, directory.resolve())).as_posix()


def steps_of(row: Row) -> Steps | None:
    """The timed steps as a verdict wants them; None where not all of them are times above 0: rows are read from files
    that anyone may have written. Of very many every so many-th, as judging takes long."""
    known = [time for time in map(number, row.samples_ms) if time is not None and time > 0]
    if len(known) < len(row.samples_ms):
        return None
    every = -(-len(known) // _MOST_JUDGED) or 1
    waited = [wait for wait in map(number, row.data_ms) if wait is not None and wait >= 0]
    waited = waited[::every] if len(waited) == len(known) else []
    return Steps(known[::every], waited, number(row.cpu_wait_percent))


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
        listed = ", ".join(map(str, paths))
        raise UserError(f"{listed}: no row of a benchmark; `megaclass bench ... --output FILE` writes them")
    return sources, strangers


def _files(paths: Sequence[str | Path]) -> Iterable[Path]:
    """The files. What is none, such as a pipe, would be waited for: UserError."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        for file in _files_of(path):
            found.setdefault(file.resolve(), file)
    return found.values()


def _files_of(path: Path) -> Iterator[Path]:
    try:
        if path.is_dir():
            yield from sorted(filter(Path.is_file, path.glob("*.jsonl")))
        elif path.exists() and not path.is_file():
            raise UserError(f"{path}: neither a file nor a directory")
        else:
            yield path
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _depth(value: Any) -> int:
    """How many containers lie in one another."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in inner if isinstance(item, dict | list)]
    return depth
