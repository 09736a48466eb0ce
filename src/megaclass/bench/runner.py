"""Runs a case: every implementation in processes of its own, taking turns step by step, and one row of each.

Only one of them works at a time. What disturbs the machine for a while thus disturbs all alike, and the ratio
of their times stays what it is.
"""

import datetime
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megaclass.bench.benchmark import Case, samples_ms
from megaclass.bench.cpu_wait import Pressure
from megaclass.bench.processes import Crew, Ended
from megaclass.bench.registry import BENCHMARKS
from megaclass.results import machine
from megaclass.results.rows import Row


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One implementation and how it is run.

    changes: fields of the case that it runs otherwise. extra: parameters of the row that a case has no field
    for. variables: changes to the environment. options: for its adapter. missing: why it cannot take part, if so.
    """

    implementation: str = "megaclass"
    changes: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str | None] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    missing: str = ""


class Member:
    """An implementation at work on a case. What ends it early is kept, and ends no other."""

    def __init__(self, entry: Entry, case: Any, timeout_s: float, group: str) -> None:
        self.entry, self.case = entry, replace(case, **entry.changes)
        self._timeout_s, self._left_s, self._group = timeout_s, timeout_s, group
        self._crew: Crew | None = None
        self._turns: list[list[dict[str, Any]]] = []  # the timed ones; of each the answers of all ranks
        self._end: list[dict[str, Any]] = []
        self.ended: Ended | None = None
        self.cpu_wait_percent: float | None = None
        self.alone = True  # whether nobody else's memory lies on its device
        self._do(self._begin)

    @property
    def alive(self) -> bool:
        return self.ended is None

    def _begin(self) -> None:
        self._crew = Crew(self.case.world_size, self.entry.variables)
        self._ask(
            {
                "benchmark": self.case.benchmark,
                "implementation": self.entry.implementation,
                "case": asdict(self.case),
                "options": self.entry.options,
                "timeout_s": self._timeout_s,
                "parent": os.getpid(),
            }
        )

    def take_step(self, index: int, on_progress: Callable[[float], None] = lambda done: None) -> None:
        """Those of the warm-up leave no sample."""

        def step() -> None:
            answers = self._ask({"step": index}, on_progress)
            if index >= self.case.warmup:
                self._turns.append(answers)

        self._do(step)

    def finish(self) -> None:
        self._do(lambda: self._end.extend(self._ask({"finish": True})))
        self.close()

    def _ask(
        self, request: dict[str, Any], on_progress: Callable[[float], None] = lambda done: None
    ) -> list[dict[str, Any]]:
        assert self._crew is not None
        begin = time.monotonic()
        answers = self._crew.ask(request, max(0.0, self._left_s), on_progress)
        self._left_s -= time.monotonic() - begin
        return answers

    def _do(self, work: Callable[[], None]) -> None:
        if not self.alive:
            return
        try:
            work()
        except Ended as ended:
            self.ended = ended
            if ended.status == "timeout":
                done = f"{len(self._turns)} of {self.case.steps} steps"
                self.ended = Ended("timeout", f"not done in {self._timeout_s:g} s ({done})")
            self.close()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def row(self) -> Row:
        case = self.case.parameters() | self.entry.extra
        common: dict[str, Any] = {
            "implementation": self.entry.implementation,
            "benchmark": self.case.benchmark,
            "group": self._group,
            "cpu_wait_percent": self.cpu_wait_percent,
            "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        if self.ended is not None:
            return Row(
                **common,
                case=case,
                status=self.ended.status,
                reason=self.ended.reason,
                samples_ms=samples_ms(self._turns),
                environment=machine.snapshot(),
            )
        limits = [answer["limits"] for answer in self._end]
        memory_mb = _largest([answer["memory_mb"] for answer in self._end])
        return Row(
            **common,
            **BENCHMARKS[self.case.benchmark].measures(
                self.entry.implementation, self.case, self._turns, limits
            ),
            case=case | self._end[0]["facts"],
            status="ok",
            memory_mb=memory_mb if self.alone else memory_mb | {"driver": None},
            environment=self._end[0]["environment"],
        )


def run_case(
    case: Case,
    found: list[Entry],
    timeout_s: float,
    on_step: Callable[[float, int], None] = lambda done, total: None,
) -> Iterator[Row]:
    """Measure all entries beside one another, and those alone again that found no memory in company; a row of each."""
    members = _take_turns(case, [entry for entry in found if not entry.missing], timeout_s, on_step)
    waiting = iter(members)
    for entry in found:
        if entry.missing:
            yield skipped(case, entry, entry.missing)
            continue
        member = next(waiting)
        if len(members) > 1 and member.ended is not None and member.ended.status == "oom":
            (member,) = _take_turns(case, [entry], timeout_s, on_step)
        yield member.row()


def _take_turns(
    case: Case, found: list[Entry], timeout_s: float, on_step: Callable[[float, int], None]
) -> list[Member]:
    if not found:
        return []
    group = uuid.uuid4().hex[:12]
    with ExitStack() as stack:
        members = []
        for entry in found:
            members.append(Member(entry, case, timeout_s, group))
            stack.callback(members[-1].close)
        rounds = case.warmup + case.steps
        pressure = Pressure()
        for index in range(rounds):
            # Every other round runs backwards: nobody always follows the same neighbour.
            for member in members if index % 2 == 0 else members[::-1]:
                member.take_step(index, lambda part, done=index: on_step(done + part, rounds))  # type: ignore[misc]
            on_step(index + 1, rounds)
        waited = pressure.percent()
        for member in members:
            member.cpu_wait_percent, member.alone = waited, len(members) == 1
            member.finish()
    return members


def skipped(case: Any, entry: Entry, reason: str) -> Row:
    return Row(
        implementation=entry.implementation,
        benchmark=case.benchmark,
        case=replace(case, **entry.changes).parameters() | entry.extra,
        status="skipped",
        reason=reason,
        environment=machine.snapshot(),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _largest(memories: list[dict[str, float | None]]) -> dict[str, float | None]:
    """What the process that needs most needs."""
    return {
        name: max((m[name] for m in memories if m[name] is not None), default=None)  # type: ignore[type-var]
        for name in memories[0]
    }
