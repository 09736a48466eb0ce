"""What is read off a row: throughput, latency and memory, in the units of a table, with what to say about it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev

from megaclass.report.page.sources import Source
from megaclass.report.page.words import number, quotient_text
from megaclass.results.rows import Row
from megaclass.results.stats import Ratio, interval
from megaclass.results.verdict import BUSY_PERCENT, Steps

BUSY = (
    f"other programs were busy: some task waited for a processor in more than {BUSY_PERCENT:g}% of the time"
)
MOST_JUDGED = 20_000
_PERCENTS = {"mean": None, "p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p100": 100.0}
_UNITS = {"GB": 1 / 1024, "h": 1 / 3600, "%": 100.0}  # of MiB, seconds and shares
_SEEDS = ("top1", "top1_std", "top1_min", "top1_max", "seconds")


@dataclass(frozen=True)
class Measured:
    """A value in the unit of its column, the rows that it is of, and what has to be said about it."""

    value: float
    sources: tuple[Source, ...]
    note: str = ""


def throughput(row: Row) -> float | None:
    """Samples a second: by all time of the timed epochs where a row has that, else by the median step."""
    return number(row.rates.get("total")) or number(row.samples_per_second)


def memory_mb(row: Row) -> tuple[float | None, str]:
    """What the driver reports, else what PyTorch reserved, else what it allocated; on a CPU the process's."""
    for name, note in (
        ("driver", ""),
        ("reserved", "memory reserved by PyTorch: the driver told none"),
        ("allocated", "memory allocated by PyTorch: the driver told none"),
        ("process", "memory of the process: measured on a CPU"),
    ):
        if (found := number(row.memory_mb.get(name))) is not None:
            return found, note
    return None, ""


def latency_ms(row: Row, name: str) -> float | None:
    """name: ``mean``, ``p50`` to ``p100``."""
    return number(row.step_ms.get(name))


def busy(sources: Sequence[Source]) -> str:
    """What to say of a number that was measured while other programs had work; else nothing."""
    waits = [number(source.row.cpu_wait_percent) or 0.0 for source in sources]
    return BUSY if max(waits, default=0.0) > BUSY_PERCENT else ""


def steps(row: Row) -> Steps | None:
    """The timed steps as a verdict wants them; None where not all of them are times above 0: rows are read from files
    that anyone may have written. Of more than ``MOST_JUDGED`` every so many-th, as judging takes long."""
    times, waits = map(number, row.samples_ms), [number(value) for value in row.data_ms]
    known = [time for time in times if time is not None and time > 0]
    if len(known) < len(row.samples_ms):
        return None
    waited = [wait for wait in waits if wait is not None and wait >= 0]
    every = -(-len(known) // MOST_JUDGED) or 1
    waited = waited[::every] if len(waited) == len(known) else []
    return Steps(known[::every], waited, number(row.cpu_wait_percent))


def measured(sources: Sequence[Source], measure: str, unit: str) -> Measured | None:
    """The number of a table's column from the rows (one, or for what seeds differ in all) of its case."""
    if measure in _SEEDS:
        return _of_seeds(sources, measure, unit)
    row, note = sources[-1].row, ""
    if measure == "samples_per_second":
        found = throughput(row)
    elif measure == "gpu_memory_mb":
        found, note = memory_mb(row)
    else:
        found = latency_ms(row, _statistic(row, measure))
    return None if found is None else Measured(found * _UNITS.get(unit, 1.0), (sources[-1],), note)


def ratio_to_published(found: Measured, measure: str, published: float) -> Ratio | None:
    """With the interval of the steps that the number is of; None where it is not of steps, or of one alone."""
    source = found.sources[-1]
    name = _statistic(source.row, measure)
    centre = latency_ms(source.row, name)
    if len(found.sources) > 1 or name not in _PERCENTS or len(source.samples_ms) < 2 or not centre:
        return None
    low, high = (end / centre for end in step_interval(source, name))
    if measure == "samples_per_second":  # the longer a step, the fewer samples in a second
        low, high = (1 / end if end > 0 else math.inf for end in (high, low))
    value = found.value / published
    return Ratio(value, value * low, value * high)


def ratio_text(ratio: Ratio) -> str:
    low, high = quotient_text(ratio.low), quotient_text(ratio.high)
    return f"{quotient_text(ratio.value)} ({low} to {high})"


@lru_cache(maxsize=4096)
def step_interval(source: Source, name: str) -> tuple[float, float]:
    """That of a statistic of the steps, by resampling. Several tables ask for the same one."""
    return interval(source.samples_ms, _PERCENTS[name])


def _statistic(row: Row, measure: str) -> str:
    """Of the steps: which one the measure is of."""
    if measure == "samples_per_second":
        return "mean" if number(row.rates.get("total")) else "p50"
    return measure.removeprefix("latency_").removesuffix("_ms")


def _of_seeds(sources: Sequence[Source], measure: str, unit: str) -> Measured | None:
    name = measure.partition("_")[0]
    pairs = [
        (source, found) for source in sources if (found := number(source.row.result.get(name))) is not None
    ]
    values = [found for _, found in pairs]
    if not values or (measure == "top1_std" and len(values) < 2):
        return None
    statistics: dict[str, Callable[[list[float]], float]]
    statistics = {"top1_std": stdev, "top1_min": min, "top1_max": max}
    statistic = statistics.get(measure, fmean)
    note = f"of {len(values)} seed{'s' if len(values) > 1 else ''}"
    return Measured(statistic(values) * _UNITS.get(unit, 1.0), tuple(source for source, _ in pairs), note)
