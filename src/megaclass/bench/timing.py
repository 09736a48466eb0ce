"""Time on a device: the clock is read when the device has finished what it was given."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class Stopwatch:
    """``wait`` returns when the device is idle; on a CPU there is nothing to wait for.

    A synchronised clock rather than device events: the time that the host needs to launch the work counts,
    as it does in training.
    """

    def __init__(
        self, device: torch.device, wait: Callable[[], object] | None = None, clock=time.perf_counter
    ) -> None:
        if wait is None:
            wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self._wait, self._clock = wait, clock

    def time_ms(self, work: Callable[[], T]) -> tuple[float, T]:
        """How long ``work`` took, and what it returned."""
        self._wait()
        begin = self._clock()
        result = work()
        self._wait()
        return (self._clock() - begin) * 1000, result
