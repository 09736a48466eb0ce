"""A study from its first seed to its last: what is done stays, what has stopped goes on, what fails is a row."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from megaclass.bench.old_stability.record import key_of, row_of
from megaclass.bench.old_stability.study import Study
from megaclass.bench.old_stability.training import train
from megaclass.results.rows import Row, RowWriter, read_rows


class Watcher(Protocol):
    """Is told how far a study is; what is not known yet is None."""

    def begins(self, number: int, total: int, seed: int) -> None: ...

    def step(self, step: int, total: int | None, left_s: float | None) -> None: ...


def kept(study: Study) -> dict[int, Row]:
    """The rows of the seeds that are done. A run that was done when its study was killed gets its row now."""
    before = read_rows(study.rows_file) if study.rows_file.exists() else []
    found = {row.key: row for row in before if row.status == "ok"}
    rows = {}
    for seed in study.seeds:
        if study.result_of(seed) is not None:
            rows[seed] = found.get(key_of(study.case_of(seed))) or row_of(study, seed)
    with RowWriter(study.rows_file) as writer:
        for row in rows.values():
            if row.key not in found:
                writer.write(row)
    return rows


def run(
    study: Study,
    done: dict[int, Row],
    watcher: Watcher,
    training: Callable[..., str] = train,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Row]:
    """Train the seeds that ``done`` has not, one after the other; their rows as they come, appended to the file."""
    todo = [seed for seed in study.seeds if seed not in done]
    took_s: list[float] = []
    for number, seed in enumerate(todo):
        watcher.begins(study.seeds.index(seed) + 1, len(study.seeds), seed)
        left = _TimeLeft(len(todo) - number - 1, took_s, clock)
        failure = training(
            study,
            seed,
            lambda step, total, left=left: watcher.step(step, total, left(step, total)),
        )
        if not failure:
            took_s.append(left.elapsed_s())
        row = row_of(study, seed, failure)
        with RowWriter(study.rows_file) as writer:
            writer.write(row)
        yield row


class _TimeLeft:
    """Of the seed that is being trained, by its pace since its first log line here, and of those after it, which
    take as long as those before, or as this one."""

    def __init__(self, after: int, took_s: list[float], clock: Callable[[], float]) -> None:
        self._after, self._took_s, self._clock = after, took_s, clock
        self._begin = clock()
        self._first: tuple[int, float] | None = None

    def elapsed_s(self) -> float:
        return self._clock() - self._begin

    def __call__(self, step: int, total: int | None) -> float | None:
        if self._first is None and step:
            self._first = (step, self.elapsed_s())
        if self._first is None or total is None or step <= self._first[0]:
            return None
        step_s = (self.elapsed_s() - self._first[1]) / (step - self._first[0])
        whole_s = sum(self._took_s) / len(self._took_s) if self._took_s else total * step_s
        return (total - step) * step_s + self._after * whole_s
