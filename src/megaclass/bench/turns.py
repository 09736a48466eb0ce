"""Runs a case: every implementation in processes of its own, taking turns step by step, and one row of each.

Only one of them works at a time. What disturbs the machine for a while thus disturbs all alike, and the ratio
of their times stays what it is.
"""

import datetime
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from megaclass.bench.case import Answers, Case, Implementation, benchmark_of, samples_ms
from megaclass.bench.memory import CpuWait
from megaclass.bench.processes import Ended, Processes
from megaclass.results import machine
from megaclass.results.rows import Row

Tell = Callable[[float], None]


class Running:
    """An implementation at work on a case. What ends it early is kept, and ends no other."""

    def __init__(self, who: Implementation, case: Any, timeout_s: float, group: str) -> None:
        self.who, self.case = who, replace(case, **who.changes)
        self._timeout_s, self._left_s, self._group = timeout_s, timeout_s, group
        self._processes: Processes | None = None
        self._turns: Answers = []  # the timed ones
        self._end: list[dict[str, Any]] = []
        self.ended: Ended | None = None
        self.cpu_wait_percent: float | None = None
        self.alone = True  # whether nobody else's memory lies on its device
        self._do(self._begin)

    def _begin(self) -> None:
        self._processes = Processes(self.case.world_size, self.who.variables)
        self._ask(
            {
                "module": type(self.case).__module__,
                "implementation": self.who.name,
                "case": asdict(self.case),
                "options": self.who.options,
                "timeout_s": self._timeout_s,
                "parent": os.getpid(),
            }
        )

    def take_turn(self, index: int, tell: Tell = lambda done: None) -> None:
        """Those of the warm-up leave no sample."""

        def turn() -> None:
            answers = self._ask({"turn": index}, tell)
            if index >= self.case.warmup:
                self._turns.append(answers)

        self._do(turn)

    def finish(self) -> None:
        self._do(lambda: self._end.extend(self._ask({"finish": True})))
        self.close()

    def _ask(self, request: dict[str, Any], tell: Tell = lambda done: None) -> list[dict[str, Any]]:
        assert self._processes is not None
        begin = time.monotonic()
        answers = self._processes.ask(request, max(0.0, self._left_s), tell)
        self._left_s -= time.monotonic() - begin
        return answers

    def _do(self, work: Callable[[], None]) -> None:
        if self.ended is not None:
            return
        try:
            work()
        except Ended as ended:
            self.ended = ended
            if ended.status == "timeout":
                done = f"{len(self._turns)} of {self.case.steps} turns"
                self.ended = Ended("timeout", f"not done in {self._timeout_s:g} s ({done})")
            self.close()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    def row(self) -> Row:
        case = self.case.parameters() | self.who.extra
        common: dict[str, Any] = {
            "implementation": self.who.name,
            "benchmark": self.case.benchmark,
            "group": self._group,
            "cpu_wait_percent": self.cpu_wait_percent,
            "measured_at": _now(),
        }
        if self.ended is not None:
            status, reason = self.ended.status, self.ended.reason
            common |= {"samples_ms": samples_ms(self._turns), "environment": machine.snapshot()}
            return Row(**common, case=case, status=status, reason=reason)
        limits = [answer["limits"] for answer in self._end]
        found = benchmark_of(self.case).measures(self.who.name, self.case, self._turns, limits)
        memory_mb = _largest([answer["memory_mb"] for answer in self._end])
        measured = {"environment": self._end[0]["environment"]} | found
        return Row(
            **common,
            **measured,
            case=case | self._end[0]["facts"],
            status="ok",
            memory_mb=memory_mb if self.alone else memory_mb | {"driver": None},
        )


def run_case(
    case: Case,
    found: Sequence[Implementation],
    timeout_s: float,
    on_step: Callable[[float, int], None] = lambda done, total: None,
) -> Iterator[Row]:
    """Measure all beside one another, and those alone again that found no memory beside others; a row of each."""
    together = _take_turns(case, [who for who in found if not who.missing], timeout_s, on_step)
    waiting = iter(together)
    for who in found:
        if who.missing:
            yield skipped(case, who, who.missing)
            continue
        running = next(waiting)
        if len(together) > 1 and running.ended is not None and running.ended.status == "oom":
            (running,) = _take_turns(case, [who], timeout_s, on_step)
        yield running.row()


def _take_turns(
    case: Any, found: Sequence[Implementation], timeout_s: float, on_step: Callable[[float, int], None]
) -> list[Running]:
    if not found:
        return []
    group = uuid.uuid4().hex[:12]
    with ExitStack() as stack:
        running = []
        for who in found:
            running.append(Running(who, case, timeout_s, group))
            stack.callback(running[-1].close)
        rounds = case.warmup + case.steps
        cpu_wait = CpuWait()
        for index in range(rounds):
            # Every other round runs backwards: nobody always follows the same neighbour.
            for one in running if index % 2 == 0 else running[::-1]:
                one.take_turn(index, lambda part, done=index: on_step(done + part, rounds))  # type: ignore[misc]
            on_step(index + 1, rounds)
        waited = cpu_wait.percent()
        for one in running:
            one.cpu_wait_percent, one.alone = waited, len(running) == 1
            one.finish()
    return running


def skipped(case: Any, who: Implementation, reason: str) -> Row:
    return Row(
        implementation=who.name,
        benchmark=case.benchmark,
        case=replace(case, **who.changes).parameters() | who.extra,
        status="skipped",
        reason=reason,
        environment=machine.snapshot(),
        measured_at=_now(),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _largest(memories: list[dict[str, float | None]]) -> dict[str, float | None]:
    """What the process that needs most needs."""
    return {
        name: max((m[name] for m in memories if m[name] is not None), default=None)  # type: ignore[type-var]
        for name in memories[0]
    }
