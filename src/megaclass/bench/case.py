"""How a benchmark declares itself, once: its case, its metrics, and what runs it.

A benchmark is one file in this folder: a frozen :class:`Case` dataclass whose fields say how they stand on the
command line, the class that ``prepare`` makes and whose ``turn`` is timed, a list of metrics, and the
:class:`Benchmark` that names them. Flags, sweep, row, console, page, curve and headline all follow from these.
Reports read declarations on machines without torch: a benchmark's file imports torch inside its functions.
"""

import dataclasses
import importlib
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from megaclass.errors import UserError, lookup
from megaclass.results.machine import usable_cores
from megaclass.results.rows import Row, timed

_MOST = 10**15  # beyond it sizes in bytes leave 64 bits


# -- a case ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """What a field of a case says of itself."""

    help: str = ""  # what it means, for ``--help``; without one it has no flag
    sweeps: bool = False  # the flag takes a list, and every combination is measured
    flags: Sequence[str] = ()  # instead of ``--name-with-dashes``
    given: str = ""  # the flag's default as one would write it, where that is not the field's
    title: str = ""  # what tables call it, by default the name with spaces
    setting: str = ""  # the ``section.key`` of a recipe that it stands for
    low: float | None = None
    high: float | None = None
    choices: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)  # what a command line may call the choices too
    effort: bool = False  # how often it is measured: no other case, and no column of a table


def parameter(default: Any, help: str = "", **told: Any) -> Any:
    """A field of a case; ``told``: as :class:`Parameter` has it."""
    metadata = vars(Parameter(help, **told))
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement, of which all implementations take their turns. It travels to its processes as a dict.

    Every case says, by fields: ``device`` (``auto`` until it is planned) and ``threads`` of each process (0: its share
    of the cores); by fields, class variables or properties: ``world_size`` (processes of an implementation), ``warmup``
    (turns that leave no sample), ``steps`` (turns that leave one) and ``samples`` (of a turn, or of each step of a
    longer one).
    """

    @property
    def benchmark(self) -> str:
        """The name of what it is a case of."""
        return benchmark_of(self).name

    def parameters(self) -> dict[str, Any]:
        """For a row."""
        return dataclasses.asdict(self)

    @property
    def text(self) -> str:
        """For a person, in a line: what sweeps, and what is not as usual."""
        words = []
        for f in fields_of(self):
            value = getattr(self, f.name)
            usual = value == f.default and (not f.metadata["sweeps"] or value in (1, False))
            if f.metadata["effort"] or usual or value in ("", 0, {}) or f.name in ("threads", "seed"):
                continue
            title = f.metadata["title"] or f.name.replace("_", " ")
            words.append(value if isinstance(value, str) else f"{title} {brief(value)}")
        return ", ".join(words)

    def check(self) -> None:
        """UserError: a value that no machine could run."""
        for f in fields_of(self):
            value, flag, most = getattr(self, f.name), long_flag(f), f.metadata["high"] or _MOST
            if choices := f.metadata["choices"]:
                known = dict.fromkeys([*choices, *f.metadata["aliases"]])
                lookup(known, value, flag.lstrip("-").replace("-", " "))
            low = f.metadata["low"]
            if low is not None and not low <= value <= most:
                raise UserError(f"{flag}: {value:g} is outside [{low:g}, {most:g}]")

    def resolved(self) -> Any:
        """The case with everything said that it left open. UserError: it makes no sense."""
        return self

    def why_skipped(self, gpus: int) -> str:
        """Why it fits not itself or a machine of so many GPUs, or an empty string."""
        case: Any = self
        cores, processes = usable_cores(), case.world_size
        if case.device == "cuda" and processes > gpus:
            return f"{processes} processes need as many GPUs, and there are {gpus}"
        if case.device == "cpu" and processes > max(8, 4 * cores):
            return f"{processes} processes are too many for {cores} cores"
        return ""


def fields_of(case: Any) -> "list[dataclasses.Field[Any]]":
    return [f for f in dataclasses.fields(case) if f.metadata]


def flags_of(f: "dataclasses.Field[Any]") -> tuple[str, ...]:
    return f.metadata["flags"] or (f"--{f.name.replace('_', '-')}",)


def long_flag(f: "dataclasses.Field[Any]") -> str:
    """The first of its flags with two dashes: it is what messages say, and the name that options have it by."""
    return next(flag for flag in flags_of(f) if flag.startswith("--"))


def brief(value: Any) -> str:
    """A value of a case, for a person."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={brief(item)}" for key, item in value.items())
    return f"{value:,.12g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


# -- what it is measured by -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A number that a row of the benchmark has."""

    key: str  # as published reports name it: ``samples_per_second``, ``gpu_memory_mb``, ``latency_p99_ms``
    title: str  # heads a column, with the unit
    read: Callable[[Row], float | None]  # off an ``ok`` row, None where it has none
    better: str = ""  # ``higher``, ``lower``, or nothing where neither is
    # Of the timed steps (``mean``, ``p50`` .. ``p100``), where the number follows from it: its interval is resampled.
    statistic: str = ""


def value_of(part: str, key: str, factor: float = 1.0) -> Callable[[Row], float | None]:
    """Reads ``factor * row.part[key]``."""

    def read(row: Row) -> float | None:
        value = getattr(row, part).get(key)
        return None if value is None else factor * value

    return read


def share_of_limit(what: str) -> Callable[[Row], float | None]:
    """Reads how much of the measured limit of the machine is reached, in percent."""

    def read(row: Row) -> float | None:
        reached, limit = (row.work.get(f"{name}_per_second") for name in (what, f"limit_{what}"))
        return 100 * reached / limit if reached and limit else None

    return read


def _memory_mb(row: Row) -> float | None:
    """What the driver reports, else what PyTorch reserved, else what it allocated; on a CPU the process's."""
    held = (row.memory_mb.get(name) for name in ("driver", "reserved", "allocated", "process"))
    return next((value for value in held if value is not None), None)


def latency(statistic: str, title: str) -> Metric:
    """Of a step: ``mean``, ``p50`` .. ``p100``."""
    return Metric(f"latency_{statistic}_ms", title, value_of("step_ms", statistic), "lower", statistic)


SPEED = Metric("samples_per_second", "Samples/s", lambda row: row.samples_per_second, "higher", "p50")
EPOCHS_SPEED = Metric(
    "samples_per_second",
    "Images/s",
    lambda row: row.rates.get("total") or row.samples_per_second,
    "higher",
    "mean",
)
MEMORY = Metric("gpu_memory_mb", "Memory, MiB", _memory_mb, "lower")
FLOPS = Metric("flops_per_second", "GFLOP/s", value_of("work", "flops_per_second", 1e-9), "higher")
OF_LIMIT = Metric("flops_share", "Of limit, %", share_of_limit("flops"), "higher")


class Turns:
    """An implementation at work on a case, in a process that measures nothing else."""

    def turn(self, index: int) -> dict[str, Any]:
        """Work once. The answer has ``ms``, or the ``samples_ms`` of the steps of a longer turn, and whatever else the
        benchmark's ``measures`` reads."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Parameters of the case as this implementation really ran it."""
        return {}

    def result(self) -> dict[str, float]:
        """What its output is worth, asked when nothing more is timed."""
        return {}


Answers = list[list[dict[str, Any]]]
"""Of each timed turn the answers of all ranks."""


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """Who takes turns in a case, and how it is run."""

    name: str = "megaclass"
    changes: dict[str, Any] = field(default_factory=dict)  # fields of the case that it runs otherwise
    extra: dict[str, Any] = field(default_factory=dict)  # parameters of the row that a case has no field for
    variables: dict[str, str | None] = field(default_factory=dict)  # changes to the environment
    options: dict[str, Any] = field(default_factory=dict)  # for ``prepare``
    missing: str = ""  # why it cannot take part, if so

    @property
    def text(self) -> str:
        """For a person: its name, and what it runs otherwise than the case says."""
        changes = self.changes | self.extra
        return " ".join([self.name, *(brief(value) for value in changes.values())])


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A case and who takes turns in it."""

    case: Any
    implementations: tuple[Implementation, ...] = (Implementation(),)
    skip: str = ""  # why it cannot be measured here, if so
    original_case: Any = None  # the one that was asked for, where this one was scaled down from it
    suite: str = ""
    identity: dict[str, Any] = field(default_factory=dict)  # what its rows depend on besides


def samples_ms(turns: Answers) -> list[float]:
    """A turn, or each of its steps, takes as long as its slowest rank."""
    return [
        round(max(ranks), 4)
        for turn in turns
        for ranks in zip(*(answer.get("samples_ms", [answer.get("ms")]) for answer in turn), strict=True)
    ]


def _timed(name: str, case: Any, turns: Answers, limits: list[dict[str, float]]) -> dict[str, Any]:
    return timed(samples_ms(turns), case.samples)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the command line, the sweep, the worker and reports see it.

    name: of the command and in rows. title: of its tables. help: its line in ``megaclass bench --help``. case: the
    frozen dataclass of one measurement. metrics: columns, in order. headline: the key of the metric that a page begins
    with. repeats: the field of which several values are the same measurement again (the seed of a training), whose mean
    and spread are told; empty where none is.

    In the worker, whose process measures one implementation: libraries(case, world) lets what is loaded at first use
    load, which is no memory of an implementation; prepare(case, world, name, options) makes it ready for its first
    turn; limits(case, world) measures what the machine can do at most when it is gone. In the sweep: flags(parser) adds
    options that are no fields; settings: ``--section.key`` values of a recipe are taken too, as ``options.settings``;
    cases(options) are asked for, by default :func:`cases_of`, and may set ``options.device`` and ``options.output``
    (the file of the rows); implementations(case, options) take turns in each; surroundings(planned) holds while the
    case is measured, and gives what is measured; measures(name, case, turns, limits) are the fields of an ``ok`` row;
    timeout_s: what an implementation may take for a case, where no other time is given.
    """

    name: str
    title: str
    help: str
    case: type[Any]
    metrics: tuple[Metric, ...]
    headline: str
    repeats: str = ""
    _: KW_ONLY
    prepare: Callable[[Any, Any, str, dict[str, Any]], Turns]
    measures: Callable[[str, Any, Answers, list[dict[str, float]]], dict[str, Any]] = _timed
    libraries: Callable[[Any, Any], None] = lambda case, world: None
    limits: Callable[[Any, Any], dict[str, float]] = lambda case, world: {}
    flags: Callable[[ArgumentParser], object] = lambda parser: None
    settings: bool = False
    cases: Callable[[Any], list[Any]] | None = None
    implementations: Callable[[Any, Any], Sequence[Implementation]] = lambda case, options: [Implementation()]
    surroundings: Callable[[Planned], AbstractContextManager[Planned]] = nullcontext
    timeout_s: float = 600.0

    def metric(self, key: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.key == key), None)

    @property
    def leading(self) -> Metric:
        """The metric that a page begins with."""
        return next(metric for metric in self.metrics if metric.key == self.headline)

    def fields(self) -> dict[str, Mapping[str, Any]]:
        """The metadata of the case's fields, by name."""
        return {f.name: f.metadata for f in dataclasses.fields(self.case)}


def benchmark_of(case: Any) -> Benchmark:
    """The one that the module of the case declares: a worker is told the module, and needs no list of all."""
    found: Benchmark = importlib.import_module(type(case).__module__).BENCHMARK
    return found
