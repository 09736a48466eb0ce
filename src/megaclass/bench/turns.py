"""Runs a case: every implementation in processes of its own, taking turns step by step, and one row of each.

Only one of them works at a time. What disturbs the machine for a while thus disturbs all alike, and the ratio
of their times stays what it is.
"""

import contextlib
import datetime
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from megaclass.bench.case import Answers, Case, Implementation, benchmark_of, samples_ms
from megaclass.bench.processes import Ended, Processes
from megaclass.results import machine
from megaclass.results.rows import Row

OnStep = Callable[[int, int], None]  # of how many rounds, how many are done


class Running:
    """An implementation at work on a case. What ends it early is kept, and ends no other."""

    def __init__(self, who: Implementation, case: Any, timeout_s: float) -> None:
        self.who, self.case = who, replace(case, **who.changes)
        self._timeout_s = self._left_s = timeout_s
        self._processes = Processes(self.case.world_size, who.variables)
        self._turns: Answers = []  # the timed ones
        self._end: list[dict[str, Any]] = []
        self._ended: Ended | None = None

    def begin(self) -> None:
        job = {"module": type(self.case).__module__, "case": asdict(self.case), "timeout_s": self._timeout_s}
        self._ask(job | {"implementation": self.who.name, "options": self.who.options, "parent": os.getpid()})

    def take_turn(self, index: int) -> None:
        """Those of the warm-up leave no sample."""
        answers = self._ask({"turn": index})
        if answers and index >= self.case.warmup:
            self._turns.append(answers)

    def finish(self) -> None:
        self._end = self._ask({"finish": True})
        self.close()

    def _ask(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers of all ranks; none when it has ended early."""
        if self._ended:
            return []
        begin = time.monotonic()
        try:
            return self._processes.ask(request, self._left_s)
        except Ended as ended:
            self._ended = ended
            if ended.status == "timeout":
                done = f"{len(self._turns)} of {self.case.steps} turns"
                self._ended = Ended("timeout", f"not done in {self._timeout_s:g} s ({done})")
            self.close()
            return []
        finally:
            self._left_s -= time.monotonic() - begin

    def close(self) -> None:
        self._processes.close()

    def row(self, alone: bool) -> Row:
        """alone: nobody else's memory lies on its device."""
        if self._ended:
            row = _row(self.case, self.who, self._ended.status, self._ended.reason)
            return replace(row, samples_ms=samples_ms(self._turns))
        limits = [answer["limits"] for answer in self._end]
        measures = benchmark_of(self.case).measures(self.who.name, self.case, self._turns, limits)
        found = {"result": self._end[0]["result"]} | measures
        memory_mb = _largest([answer["memory_mb"] for answer in self._end])
        if not alone:
            memory_mb["driver"] = None
        row = _row(self.case, self.who, "ok", "", self._end[0]["environment"])
        return replace(row, case=row.case | self._end[0]["facts"], memory_mb=memory_mb, **found)


def run_case(
    case: Case,
    found: Sequence[Implementation],
    timeout_s: float,
    on_step: OnStep = lambda done, total: None,
) -> Iterator[Row]:
    """Measure all beside one another, and those alone again that found no memory beside others; a row of each."""
    present = [who for who in found if not who.missing]
    rows = iter(_take_turns(case, present, timeout_s, on_step))
    for who in found:
        row = skipped(case, who, who.missing) if who.missing else next(rows)
        if row.status == "oom" and len(present) > 1:
            (row,) = _take_turns(case, [who], timeout_s, on_step)
        yield row


def _take_turns(case: Any, found: Sequence[Implementation], timeout_s: float, on_step: OnStep) -> list[Row]:
    group, running = uuid.uuid4().hex[:12], []
    with ExitStack() as stack:
        for who in found:
            one = Running(who, case, timeout_s)
            stack.callback(one.close)
            one.begin()
            running.append(one)
        rounds = case.warmup + case.steps
        begin, waited_s = time.monotonic(), _cpu_wait_s()
        for index in range(rounds):
            # Every other round runs backwards: nobody always follows the same neighbour.
            for one in running if index % 2 == 0 else running[::-1]:
                one.take_turn(index)
            on_step(index + 1, rounds)
        waited = _share_waited(begin, waited_s)
        for one in running:
            one.finish()
    return [replace(one.row(len(running) == 1), group=group, cpu_wait_percent=waited) for one in running]


def skipped(case: Any, who: Implementation, reason: str) -> Row:
    return _row(replace(case, **who.changes), who, "skipped", reason)


def _row(case: Any, who: Implementation, status: str, reason: str, environment: Any = None) -> Row:
    return Row(
        implementation=who.name,
        benchmark=case.benchmark,
        case=case.parameters() | who.extra,
        status=status,
        reason=reason,
        environment=environment or machine.snapshot(),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _largest(memories: list[dict[str, float | None]]) -> dict[str, float | None]:
    """What the process that needs most needs."""
    return {
        name: max((m[name] for m in memories if m[name] is not None), default=None)  # type: ignore[type-var]
        for name in memories[0]
    }


def _share_waited(begin: float, waited_s: float | None) -> float | None:
    """For which part of the time since then, in percent, some task of the machine waited for a processor. A measurement
    that is alone has as many threads as there are cores, and hardly ever waits."""
    now_s, seconds = _cpu_wait_s(), time.monotonic() - begin
    if now_s is None or waited_s is None or seconds <= 0:
        return None
    return round(min(100.0, 100 * (now_s - waited_s) / seconds), 1)


def _cpu_wait_s() -> float | None:
    """Linux counts it (Documentation/accounting/psi.rst): ``some avg10=0.00 .. total=MICROSECONDS``; elsewhere None."""
    with contextlib.suppress(OSError, ValueError):
        line = Path("/proc/pressure/cpu").read_text().splitlines()[0]
        return int(line.rpartition("total=")[2]) / 1e6
    return None
