"""Time of a pass: on the wall, and of all processors that worked for it."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil


class Time(NamedTuple):
    """ms: on the wall. cpu_ms: user and system time of this process and of those that it started."""

    ms: float
    cpu_ms: float


def timed(work: Callable[[], object]) -> Time:
    """How long ``work`` takes. Its last thread has to be done when it returns: what comes later is not seen."""
    others_s = _descendants_s()
    cpu_s, begin = time.process_time(), time.perf_counter()
    work()
    ms = 1e3 * (time.perf_counter() - begin)
    cpu_s = time.process_time() - cpu_s
    return Time(ms, 1e3 * (cpu_s + _descendants_s() - others_s))


def _descendants_s() -> float:
    """CPU seconds of processes that this one has started, those that it has waited for included."""
    ended = os.times()
    total = ended.children_user + ended.children_system
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # user, system, and those of its own that have ended
    return total
