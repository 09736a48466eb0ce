"""How a benchmark declares itself, once: its case, its metrics, and what it says of itself.

A benchmark is one file in this folder, with a frozen :class:`Case` dataclass whose fields say how they stand on the
command line, ``prepare`` and the turns of what it prepares, and a list of metrics. Flags, sweep, row, console, page,
curve and headline all follow from these. Declarations are read by reports too, on machines without torch: a
benchmark's file imports torch inside its functions.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from megaclass.results.rows import Row


def parameter(
    default: Any,
    help: str = "",
    *,
    sweeps: bool = False,
    flags: Sequence[str] = (),
    title: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    counts: bool = False,
    effort: bool = False,
) -> Any:
    """A field of a case.

    help: what it means, for ``--help``; without one it has no flag. sweeps: the flag takes a list, and every
    combination is measured. flags: instead of ``--name-with-dashes``. title: what tables call it, by default the name
    with spaces. low, high, choices: what is allowed. counts: a whole number that may be written 100K. effort: how often
    something is measured, which makes no other case of it and no column of a table.
    """
    metadata = {
        "help": help,
        "sweeps": sweeps,
        "flags": tuple(flags),
        "title": title,
        "low": low,
        "high": high,
        "choices": tuple(choices),
        "counts": counts,
        "effort": effort,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Metric:
    """A number that a row of the benchmark has.

    key: as published reports name what they measured (``samples_per_second``, ``gpu_memory_mb``, ``latency_p99_ms``),
    or as ``megaclass compare`` does. title: heads a column, with the unit. read: the number off an ``ok`` row, None where
    it has none. better: ``higher``, ``lower``, or nothing where neither is. statistic: of the timed steps, which the number
    follows from (``mean``, ``p50`` .. ``p100``), so that its interval can be resampled; empty where it does not.
    always: a column even where it is empty in all rows.
    """

    key: str
    title: str
    read: Callable[[Row], float | None]
    better: str = ""
    statistic: str = ""
    always: bool = False


class Turns(Protocol):
    """An implementation at work on a case, in a process that measures nothing else."""

    def turn(self, index: int, tell: Callable[[float], None]) -> dict[str, Any]:
        """Work once. The answer has ``ms``, or the ``samples_ms`` of the steps of a longer turn, and whatever else the
        benchmark's ``measures`` reads. ``tell`` takes how much of a long turn is done, 0 to 1."""
        ...

    def facts(self) -> dict[str, Any]:
        """Parameters of the case as this implementation really ran it."""
        ...


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the command line, the sweep and reports see it.

    name: of the command and in rows. title: of its tables. help: its line in ``megaclass bench --help``. case: the
    frozen dataclass of one measurement. metrics: columns, in order. headline: the key of the metric that a page begins
    with. repeats: the field of which several values are the same measurement again (the seed of a training), whose mean
    and spread are told; empty where none is.
    """

    name: str
    title: str
    help: str
    case: type[Any]
    metrics: tuple[Metric, ...]
    headline: str
    repeats: str = ""

    def metric(self, key: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.key == key), None)

    def fields(self) -> dict[str, Any]:
        """The metadata of the case's fields, by name."""
        return {field.name: field.metadata for field in dataclasses.fields(self.case)}

    def titles(self) -> dict[str, str]:
        """What tables call the case's parameters."""
        return {name: data.get("title") or name.replace("_", " ") for name, data in self.fields().items()}


class Named(Protocol):
    """What every case has besides its fields."""

    benchmark: ClassVar[str]
