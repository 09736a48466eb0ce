"""Time on a device; an epoch, which is a number of steps in a row, timed one by one, with the wait for data told apart;
and what the machine can do at most: a large matrix product and a large copy.

Epochs are the unit of NVIDIA's ResNet-50 script (DeepLearningExamples, MxNet/Classification/RN50v1.5, benchmark.py): it
leaves warm-up epochs out and takes the harmonic mean of the speeds of the others.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from statistics import harmonic_mean
from typing import TYPE_CHECKING, Any, TypeVar

from megaclass.bench.case import Answers, samples_ms
from megaclass.results.rows import timed

if TYPE_CHECKING:
    import torch

    from megaclass.parallel.groups import World

T = TypeVar("T")
_REPEATS = 3  # the best one counts: a limit is what the machine can do undisturbed
_A_WHILE_MS = 50.0
LARGE = 8192  # rows and columns of a product that fills a GPU


class HostClock:
    """Of a CPU, where what was called is done when the call returns."""

    def now(self) -> float:
        """Seconds, of the host."""
        return time.perf_counter()

    def wait(self) -> None:
        """Returns when the device is idle."""

    def mark(self) -> Any:
        """The moment at which the device has done what it was given so far, without waiting for it."""
        return self.now()

    def between_ms(self, first: Any, second: Any) -> float:
        """Of two marks, when the device is idle."""
        return float(second - first) * 1000


class CudaClock(HostClock):
    """Of a GPU: marks are events on the current stream, so that timing a step does not stall the next one."""

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize()

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_ms(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second))


def device_clock(device: "torch.device") -> HostClock:
    return CudaClock() if device.type == "cuda" else HostClock()


def time_ms(device: "torch.device", work: Callable[[], T]) -> tuple[float, T]:
    """How long ``work`` took from an idle device to an idle device, and what it returned.

    A synchronised clock rather than device events: the time that the host needs to launch the work counts, as it does
    in training.
    """
    clock = device_clock(device)
    clock.wait()
    begin = clock.now()
    result = work()
    clock.wait()
    return (clock.now() - begin) * 1000, result


def run_epoch(
    batches: Iterator[T],
    step: Callable[[T], object],
    iterations: int,
    clock: HostClock,
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
    begin = clock.now()
    marks = [clock.mark()]
    for _ in range(iterations):
        batch = next(batches)
        arrivals.append(clock.mark())
        step(batch)
        if one_by_one:
            clock.wait()
        marks.append(clock.mark())
    clock.wait()
    whole_ms = (clock.now() - begin) * 1000
    steps_ms = [clock.between_ms(a, b) for a, b in itertools.pairwise(marks)]
    data_ms = [clock.between_ms(a, b) for a, b in zip(marks, arrivals, strict=False)]
    return {
        "whole_ms": whole_ms,
        "samples_ms": [round(ms, 4) for ms in steps_ms],
        "data_ms": [round(ms, 4) for ms in data_ms],
    }


def epoch_measures(turns: Answers, rows_of_step: int) -> dict[str, Any]:
    """The fields of a row that follow from its timed epochs."""
    epochs = [_speeds(turn, rows_of_step) for turn in turns]
    return timed(samples_ms(turns), rows_of_step) | {
        "data_ms": [round(ms, 4) for turn in turns for ms in _waits_ms(turn)],
        "epochs": epochs,
        "rates": {name: _harmonic([epoch[name] for epoch in epochs]) for name in epochs[0]},
    }


def _speeds(turn: list[dict[str, Any]], rows_of_step: int) -> dict[str, float | None]:
    """Samples a second of an epoch, which takes as long as its slowest rank."""
    waits_ms = _waits_ms(turn)
    whole_ms, data_ms = max(answer["whole_ms"] for answer in turn), sum(waits_ms)
    spent_ms = {"total": whole_ms, "compute": whole_ms - data_ms, "data": data_ms}
    samples = rows_of_step * len(waits_ms)
    return {name: round(1000 * samples / ms, 3) if ms > 0 else None for name, ms in spent_ms.items()}


def _waits_ms(turn: list[dict[str, Any]]) -> list[float]:
    """For its data, of every step; of the rank that waited most."""
    return [max(ranks) for ranks in zip(*(answer["data_ms"] for answer in turn), strict=True)]


def _harmonic(speeds: list[float | None]) -> float | None:
    known = [speed for speed in speeds if speed]
    return round(harmonic_mean(known), 3) if len(known) == len(speeds) else None


# -- the limits of the machine --------------------------------------------------------------------------


def measure(case: Any, world: "World") -> dict[str, float]:
    """Operations a second of a product at the case's precision, and bytes a second read and written by a copy. All
    ranks measure at the same time, as they compute."""
    from megaclass.parallel import groups

    groups.barrier()
    limits = {"limit_bytes_per_second": copy_bytes_per_second(world.device)}
    if case.precision != "int8":  # PyTorch has no product to compare it with
        limits["limit_flops_per_second"] = product_flops(case.precision, LARGE, world.device)
    return limits


def beside_limits(work: dict[str, float], step_ms: float, limits: list[dict[str, float]]) -> dict[str, float]:
    """The work of a step, what it makes a second, and the limits that all ranks know, of all of them together."""
    speeds = {f"{name}_per_second": 1000 * amount / step_ms for name, amount in work.items()}
    known = set.intersection(*(set(limit) for limit in limits))
    return work | speeds | {name: sum(limit[name] for limit in limits) for name in sorted(known)}


def copy_bytes_per_second(device: "torch.device") -> float:
    """Bytes read and written by a large copy."""
    import torch

    copied = min(2**30, torch.cuda.mem_get_info(device)[0] // 8) if device.type == "cuda" else 2**28
    source, target = (torch.ones(copied, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * copied / _best_ms(lambda: target.copy_(source), device) * 1000


def product_flops(precision: str, most: int, device: "torch.device") -> float:
    """Operations a second of a square product with operands of ``precision``, in its fastest form on this device; of
    ``most`` rows, or fewer where those take a while already."""
    import torch

    forms = [(torch.float32, precision)]
    if precision in ("bf16", "fp16"):
        half = torch.bfloat16 if precision == "bf16" else torch.float16
        # A product of 16-bit operands needs no flag. On a CPU the head's are of fp32 ones that oneDNN may round.
        forms = [(half, "fp32"), *(forms if device.type == "cpu" and precision == "bf16" else [])]
    side, ms = min(most, 1024) // 2, 0.0
    while side < most and ms < _A_WHILE_MS:
        side *= 2
        ms = min(_product_ms(dtype, flag, side, device) for dtype, flag in forms)
    return 2 * side**3 / ms * 1000


def _product_ms(dtype: "torch.dtype", precision: str, side: int, device: "torch.device") -> float:
    import torch

    from megaclass.heads.products import Products

    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with Products(precision, device).active():
        return _best_ms(lambda: torch.mm(a, b, out=out), device)


def _best_ms(work: Callable[[], object], device: "torch.device") -> float:
    work()
    return min(time_ms(device, work)[0] for _ in range(_REPEATS))
