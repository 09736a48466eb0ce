"""Numbers and cases in words, and what benchmarks declare of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from megaclass.bench.case import Metric
from megaclass.results.rows import Row, setting_text

OURS = "megaclass"
_LARGEST = 1e100  # beyond, nothing was measured, and sums and quotients run out of a float


def number(value: Any) -> float | None:
    """The number, if it is one that can be reckoned with: rows are read from files that anyone may have written."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        return None
    return float(value) if abs(value) >= 1 / _LARGEST else 0.0


def digits(value: float | None) -> str:
    """Four digits that count, no more than a measurement has; thousands with commas."""
    if value is None:
        return ""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    places = 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:.{places}f}" if size >= 1 or not size else f"{value:.3g}"


def quotient_text(value: float) -> str:
    """Two digits behind the point; below 0.1 three that count."""
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.3g}"


def short(count: float) -> str:
    """100000 as 100K, 1500000 as 1.5M: all its digits, fewer zeros."""
    for size, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.15g}{suffix}"
    return f"{count:g}"


# -- what benchmarks declare ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """What reports want to know of a benchmark, see :class:`megaclass.bench.case.Benchmark`. fields: the metadata of
    its case's fields, by name."""

    title: str
    metrics: tuple[Metric, ...]
    headline: str
    repeats: str
    fields: Mapping[str, Mapping[str, Any]]

    def metric(self, key: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.key == key), None)


# What every row may have, for benchmarks that this megaclass does not know.
_ANY = (
    Metric("latency_p50_ms", "Median step, ms", lambda row: row.step_ms.get("p50"), "lower", "p50"),
    Metric("samples_per_second", "Samples/s", lambda row: row.samples_per_second, "higher", "p50"),
)


@cache
def declared(name: str) -> Declared:
    """What the benchmark of that name says of itself."""
    from megaclass.bench import BENCHMARKS

    if name not in BENCHMARKS:
        return Declared(name, _ANY, "samples_per_second", "", {})
    found = BENCHMARKS[name]
    return Declared(found.title, found.metrics, found.headline, found.repeats, found.fields())


@cache
def effort() -> frozenset[str]:
    """How often and in what portions something was measured, whatever the benchmark: no other case, and no column."""
    from megaclass.bench import BENCHMARKS

    return frozenset(
        name for one in BENCHMARKS.values() for name, data in one.fields().items() if data.get("effort")
    )


@cache
def _titles() -> dict[str, str]:
    from megaclass.bench import BENCHMARKS

    return {name: title for one in BENCHMARKS.values() for name, title in one.titles().items()}


def read(metric: Metric, row: Row) -> float | None:
    """The number of a row that is ``ok``; None where it has none, or something that is no number."""
    try:
        return number(metric.read(row))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError):
        return None


# -- cases ----------------------------------------------------------------------------------------------


def name_of(key: str) -> str:
    return _titles().get(key) or key.replace("_", " ")


def value_text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if (found := number(value)) is not None:
        return short(found) if key == "num_classes" else f"{found:,.12g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {value_text(k, v)}" for k, v in value.items()) or "none"
    return setting_text(value)


def case_text(case: Mapping[str, Any], keys: Iterable[str] | None = None) -> str:
    """``recipe faces_r50, classes 618K, ..``: of these keys, or all."""
    chosen = [key for key in (case if keys is None else keys) if key in case]
    return ", ".join(f"{name_of(key)} {value_text(key, case[key])}" for key in chosen)


def key_of(value: Any) -> str:
    """Equal for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, default=str)


def split_case(cases: Sequence[Mapping[str, Any]]) -> tuple[list[str], str]:
    """The keys in which cases differ; and what is the same in all as text. Effort is neither."""
    keys = dict.fromkeys(key for case in cases for key in case if key not in effort())
    differ = [key for key in keys if len({key_of(case.get(key)) for case in cases}) > 1]
    return differ, case_text(cases[0], [key for key in keys if key not in differ]) if cases else ""


def unfolded(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cases with the settings (``section.key``) in which they differ as keys of their own, by the last part of
    their names where that is enough."""
    settings = [found if isinstance(found := case.get("settings"), dict) else {} for case in cases]
    keys = dict.fromkeys(key for one in settings for key in one)
    differ = [key for key in keys if len({key_of(one.get(key)) for one in settings}) > 1]
    last = [key.rpartition(".")[2] for key in differ]
    taken = {key for case in cases for key in case}
    names = {
        key: name if last.count(name) == 1 and name not in taken else key
        for key, name in zip(differ, last, strict=True)
    }
    made = []
    for case, one in zip(cases, settings, strict=True):
        rest = {key: value for key, value in one.items() if key not in differ}
        told = {names[key]: one[key] for key in differ if key in one}
        whole = {"settings": rest} if isinstance(case.get("settings"), dict) else {}
        made.append({**case, **whole, **told})
    return made


def changes(asked: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """What a suite changed of the case that was asked for, to fit it to the machine; empty where nothing."""
    changed = []
    for key, wanted in asked.items():
        if key == "world_size" and case.get(key) != wanted and case.get("simulate_ranks") == wanted:
            changed.append(f"1 of {wanted} simulated ranks")
        elif key == "simulate_ranks" and case.get("world_size") != asked.get("world_size"):
            continue
        elif key == "world_size" and case.get(key) != wanted:
            changed.append(f"the whole job on {case.get(key)} instead of {wanted} devices")
        elif case.get(key) != wanted:
            got = value_text(key, case[key]) if key in case else "left out"
            changed.append(f"{name_of(key)} {value_text(key, wanted)} → {got}")
    return ", ".join(changed)


def scaled_down(row: Row) -> bool:
    """Whether a suite changed what was measured, not only in how many steps, or that fewer devices did all of it."""
    free = (*effort(), "threads", "world_size")
    return any(key not in free and row.case.get(key) != value for key, value in row.asked.items())
