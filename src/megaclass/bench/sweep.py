"""A sweep: one planned case after the other, each a list of rows, and what an earlier go has measured left out."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from megaclass.bench.benchmark import Case
from megaclass.bench.runner import Entry, run_case, skipped
from megaclass.results import machine
from megaclass.results.rows import Row, read_rows

# Of an environment: where these are alike, a number need not be taken again.
_SAME = (
    *(
        "system",
        "cpu",
        "cpu_threads_usable",
        "memory_mb",
        "gpu",
        "gpu_count",
        "driver",
        "cuda",
        "cudnn",
        "nccl",
    ),
    *("pytorch", "packages", "revision", "variables"),
)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A case and who takes part in it.

    skip: why it cannot be measured here, or an empty string. asked: the case that was asked for, where this one was
    scaled down from it. weight: how long it may take, in any unit. identity: what its rows depend on besides.
    """

    case: Any
    entries: list[Entry] = field(default_factory=lambda: [Entry()])
    skip: str = ""
    asked: Any = None
    suite: str = ""
    weight: float = 1.0
    identity: dict[str, Any] = field(default_factory=dict)

    def keys(self) -> list[str]:
        """Of the rows that it leaves."""
        return [
            row_key(
                self.asked or replace(self.case, **entry.changes),
                entry.implementation,
                suite=self.suite,
                **entry.extra,
                **self.identity,
            )
            for entry in self.entries
        ]


class Watcher(Protocol):
    """Is told how far a sweep is; ``left_s`` is None as long as nothing is known."""

    def begins(self, number: int, total: int, case: Case, left_s: float | None) -> None: ...

    def step(self, done: float, total: int) -> None: ...


class Measured:
    """The rows of a file that need not be taken again: of this machine and this source, with a number or without the
    memory for one. Those that were left out stay where the reason is still the same."""

    def __init__(self, path: str = "", again: bool = False) -> None:
        found = read_rows(path) if path and not again and Path(path).exists() else []
        self._here = machine.snapshot() if found else {}
        self._rows = {row.key: row for row in found if row.key}

    def rows(self, planned: Planned) -> list[Row]:
        """All rows of the case, or none if one is missing."""
        found = [
            row
            for entry, key in zip(planned.entries, planned.keys(), strict=True)
            if (row := self._rows.get(key)) and self._counts(row, entry, planned.skip or entry.missing)
        ]
        return found if len(found) == len(planned.entries) else []

    def _counts(self, row: Row, entry: Entry, left_out: str) -> bool:
        if left_out:
            return row.status == "skipped" and row.reason == left_out
        variables = self._here["variables"] | entry.variables
        here = self._here | {"variables": {k: v for k, v in variables.items() if v is not None}}
        return row.status in ("ok", "oom") and all(row.environment.get(name) == here[name] for name in _SAME)


def row_key(case: Case, implementation: str, **more: Any) -> str:
    """By which a row is known as the answer to what was asked: a hash of all of it."""
    asked = [implementation, case.benchmark, case.parameters(), {k: v for k, v in more.items() if v}]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]


def measure(
    plan: Sequence[Planned],
    timeout_s: float,
    watcher: Watcher,
    run: Callable[..., Iterator[Row]] = run_case,
) -> Iterator[list[Row]]:
    """The rows of one case after the other. A case that fails is a row, and the sweep goes on; one that is skipped is a
    row, and nothing begins."""
    begin, number, done = time.monotonic(), 0, 0.0
    weights = [planned.weight for planned in plan if not planned.skip]
    for planned in plan:
        if planned.skip:
            rows = [skipped(planned.case, entry, planned.skip) for entry in planned.entries]
        else:
            left_s = (time.monotonic() - begin) * (sum(weights) - done) / done if done else None
            number, done = number + 1, done + planned.weight
            watcher.begins(number, len(weights), planned.case, left_s)
            rows = list(run(planned.case, planned.entries, timeout_s, watcher.step))
        asked = planned.asked.parameters() if planned.asked else {}
        yield [
            replace(row, key=key, asked=asked, suite=planned.suite)
            for row, key in zip(rows, planned.keys(), strict=True)
        ]
