"""An epoch of a benchmark: a number of steps in a row, timed one by one, with the wait for data told apart.

That is the unit of NVIDIA's ResNet-50 script (DeepLearningExamples, MxNet/Classification/RN50v1.5, benchmark.py): it
leaves warm-up epochs out and takes the harmonic mean of the speeds of the others.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from statistics import harmonic_mean
from typing import Any, Protocol, TypeVar

import torch

from megaclass.bench.benchmark import Tell, samples_ms
from megaclass.results.rows import timed

T = TypeVar("T")
_TELL_S = 0.5  # between two words about progress


class Clock(Protocol):
    """Tells time on a device. ``mark`` notes the moment at which the device has done what it was given so far, without
    waiting for it; ``between_ms`` reads two marks when the device is idle."""

    def now(self) -> float:
        """Seconds, of the host."""
        ...

    def wait(self) -> object:
        """Returns when the device is idle."""
        ...

    def mark(self) -> Any: ...

    def between_ms(self, first: Any, second: Any) -> float: ...


class HostClock:
    """Of a CPU, where what was called is done when the call returns."""

    def now(self) -> float:
        return time.perf_counter()

    def wait(self) -> None:
        pass

    def mark(self) -> float:
        return self.now()

    def between_ms(self, first: float, second: float) -> float:
        return (second - first) * 1000


class CudaClock(HostClock):
    """Of a GPU: marks are events on the current stream, so that timing a step does not stall the next one."""

    def wait(self) -> None:
        torch.cuda.synchronize()

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_ms(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second))


def device_clock(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else HostClock()


def run_epoch(
    batches: Iterator[T],
    step: Callable[[T], object],
    iterations: int,
    clock: Clock,
    tell: Tell = lambda done: None,
    *,
    one_by_one: bool = False,
) -> dict[str, Any]:
    """Take ``iterations`` steps from an idle device to an idle device, nothing else in between.

    one_by_one: each step is waited for before the next batch is asked for, as a latency is measured; else the device
    is kept busy, as in training. Returns ``samples_ms`` and ``data_ms`` of each step, which is what it took from the
    end of the one before and the part of it in which the device had nothing to do, because the batch was not there;
    and ``whole_ms``.
    """
    arrivals = []
    clock.wait()
    begin = told = clock.now()
    marks = [clock.mark()]
    for done in range(1, iterations + 1):
        batch = next(batches)
        arrivals.append(clock.mark())
        step(batch)
        if one_by_one:
            clock.wait()
        marks.append(clock.mark())
        if (now := clock.now()) - told > _TELL_S:
            told = now
            tell(done / iterations)
    clock.wait()
    whole_ms = (clock.now() - begin) * 1000
    steps_ms = [clock.between_ms(a, b) for a, b in itertools.pairwise(marks)]
    data_ms = [clock.between_ms(a, b) for a, b in zip(marks, arrivals, strict=False)]
    return {
        "whole_ms": whole_ms,
        "samples_ms": [round(ms, 4) for ms in steps_ms],
        "data_ms": [round(ms, 4) for ms in data_ms],
    }


def measures(turns: list[list[dict[str, Any]]], rows_of_step: int) -> dict[str, Any]:
    """The fields of a row that follow from its timed epochs (of each the answer of every rank)."""
    epochs = [_speeds(turn, rows_of_step) for turn in turns]
    return timed(samples_ms(turns), rows_of_step) | {
        "data_ms": [round(max(ranks), 4) for turn in turns for ranks in _by_step(turn, "data_ms")],
        "epochs": epochs,
        "rates": {name: _harmonic([epoch[name] for epoch in epochs]) for name in epochs[0]},
    }


def _speeds(turn: list[dict[str, Any]], rows_of_step: int) -> dict[str, float | None]:
    """Samples a second of an epoch, which takes as long as its slowest rank."""
    steps = _by_step(turn, "data_ms")
    samples = rows_of_step * len(steps)
    whole_ms = max(answer["whole_ms"] for answer in turn)
    data_ms = sum(max(ranks) for ranks in steps)
    spent_ms = {"total": whole_ms, "compute": whole_ms - data_ms, "data": data_ms}
    return {name: round(1000 * samples / ms, 3) if ms > 0 else None for name, ms in spent_ms.items()}


def _by_step(turn: list[dict[str, Any]], name: str) -> list[tuple[float, ...]]:
    return list(zip(*(answer[name] for answer in turn), strict=True))


def _harmonic(speeds: list[float | None]) -> float | None:
    known = [speed for speed in speeds if speed]
    return round(harmonic_mean(known), 3) if len(known) == len(speeds) else None
