"""A sweep: from options to planned cases; one after the other, each a list of rows; what an earlier go has measured is
left out."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megaclass.bench.arguments import device_type, share_of_cores
from megaclass.bench.case import Benchmark, Implementation, Planned, benchmark_of, cases_of
from megaclass.bench.console import SweepConsole
from megaclass.bench.turns import run_case, skipped
from megaclass.results import machine
from megaclass.results.rows import Row, RowWriter, read_rows

# Of an environment: where these are alike, a number need not be taken again.
_SAME = (
    "system", "cpu", "cpu_threads_usable", "memory_mb", "gpu", "gpu_count", "driver", "cuda", "cudnn", "nccl",
    "pytorch", "packages", "revision", "variables",
)  # fmt: skip
_START_FLOPS = 2e12  # what could be computed while a process starts: only for the time left


# -- what is measured ---------------------------------------------------------------------------------


def plan(benchmark: Benchmark, options: Any) -> list[Planned]:
    """Every case that the options ask for, and who takes turns in it. UserError: options that make no sense."""
    cases = benchmark.cases(options) if benchmark.cases else cases_of(benchmark.case, options)
    device = device_type(options.device)
    found = []
    for case in cases:
        case = resolved(case, device)
        found.append(planned(case, benchmark_of(case).implementations(case, options)))
    return found


def resolved(case: Any, device: str) -> Any:
    """The case on this device (``cpu`` or ``cuda``), with everything said. UserError: it makes no sense."""
    case = replace(case, device=device)
    case.check()
    case = case.resolved()
    return replace(case, threads=case.threads or share_of_cores(case.world_size))


def planned(case: Any, found: Sequence[Implementation] = (Implementation(),), **more: Any) -> Planned:
    """A resolved case as it is measured on this machine."""
    import torch

    weight = _START_FLOPS * case.world_size + benchmark_of(case).flops(case)
    return Planned(
        case=case,
        implementations=tuple(found),
        skip=case.why_skipped(torch.cuda.device_count()),
        weight=weight * sum(not who.missing for who in found),
        **more,
    )


# -- what was measured before -------------------------------------------------------------------------


def row_key(case: Any, implementation: str, **more: Any) -> str:
    """By which a row is known as the answer to what was asked: a hash of all of it."""
    asked = [implementation, case.benchmark, case.parameters(), {k: v for k, v in more.items() if v}]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]


def keys_of(one: Planned) -> list[str]:
    """Of the rows that it leaves."""
    return [
        row_key(
            one.original_case or replace(one.case, **who.changes),
            who.name,
            suite=one.suite,
            **who.extra,
            **one.identity,
        )
        for who in one.implementations
    ]


class Measured:
    """The rows of a file that need not be taken again: of this machine and this source, with a number or without the
    memory for one. Those that were left out stay where the reason is still the same."""

    def __init__(self, path: str = "", again: bool = False) -> None:
        found = read_rows(path) if path and not again and Path(path).exists() else []
        self._here = machine.snapshot() if found else {}
        self._rows = {row.key: row for row in found if row.key}

    def rows(self, one: Planned) -> list[Row]:
        """All rows of the case, or none if one is missing."""
        found = [
            row
            for who, key in zip(one.implementations, keys_of(one), strict=True)
            if (row := self._rows.get(key)) and self._counts(row, who, one.skip or who.missing)
        ]
        return found if len(found) == len(one.implementations) else []

    def _counts(self, row: Row, who: Implementation, left_out: str) -> bool:
        if left_out:
            return row.status == "skipped" and row.reason == left_out
        variables = self._here["variables"] | who.variables
        here = self._here | {"variables": {k: v for k, v in variables.items() if v is not None}}
        return row.status in ("ok", "oom") and all(row.environment.get(name) == here[name] for name in _SAME)


# -- measuring ----------------------------------------------------------------------------------------


def measure(plan: Sequence[Planned], timeout_s: float, console: SweepConsole) -> Iterator[list[Row]]:
    """The rows of one case after the other. A case that fails is a row, and the sweep goes on; one that is skipped is
    a row, and nothing begins."""
    begin, number, done = time.monotonic(), 0, 0.0
    weights = [one.weight for one in plan if not one.skip]
    for one in plan:
        if one.skip:
            rows = [skipped(one.case, who, one.skip) for who in one.implementations]
        else:
            left_s = (time.monotonic() - begin) * (sum(weights) - done) / done if done else None
            number, done = number + 1, done + one.weight
            console.begins(number, len(weights), one.case, left_s)
            with benchmark_of(one.case).surroundings(one) as there:
                rows = list(run_case(there.case, there.implementations, timeout_s, console.step))
        asked = one.original_case.parameters() if one.original_case else {}
        yield [
            replace(row, key=key, asked=asked, suite=one.suite)
            for row, key in zip(rows, keys_of(one), strict=True)
        ]


def sweep(
    plan: Sequence[Planned],
    output: str,
    timeout_s: float,
    *,
    again: bool = False,
    heading: Any = None,
    remarks: Callable[[list[Row]], Sequence[str]] = lambda rows: (),
) -> list[Row]:
    """Measure what ``output`` does not have yet, print the rows as they come and append them; returns the rows of the
    whole plan. heading: is printed first, and tells of what is left out. remarks: on the rows of a case, printed after
    them."""
    where = f"rows appended to {output}" if output else "rows not kept: no --output FILE.jsonl"
    with RowWriter(output) as writer, SweepConsole() as console:
        if heading:
            console.print(heading)
        measured = Measured(output, again)
        found = {number: rows for number, one in enumerate(plan) if (rows := measured.rows(one))}
        if found:
            console.print(
                f"{len(found)} of {len(plan)} cases are in {output} already, measured here; --again measures them too"
            )
        todo = [number for number in range(len(plan)) if number not in found]
        try:
            for number, rows in zip(todo, measure([plan[i] for i in todo], timeout_s, console), strict=True):
                one = plan[number]
                if one.skip and not heading:
                    console.print(f"left out: {one.case.text}: {one.skip}")
                for row, who in zip(rows, one.implementations, strict=True):
                    writer.write(row)
                    if not one.skip:
                        console.row(row, benchmark_of(one.case), who.text)
                for line in remarks(rows):
                    console.print(f"  {line}")
                found[number] = rows
        except KeyboardInterrupt:
            on = "; the same command goes on from there" if output else ""
            raise KeyboardInterrupt(f"{where}{on}") from None
        console.print(where if todo else f"nothing was left to measure; the rows are in {output}")
    return [row for number in range(len(plan)) for row in found[number]]
