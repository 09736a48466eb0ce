"""Numbers and cases in words, and what benchmarks declare of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from megaclass.bench.case import Benchmark, Case, Metric
from megaclass.results.rows import Row, setting_text

OURS = "megaclass"


def number(value: Any) -> float | None:
    """The value of a parameter, if it is a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


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


# What every row may have, for benchmarks that this megaclass does not know.
_ANY = (
    Metric("latency_p50_ms", "Median step, ms", lambda row: row.step_ms.get("p50"), "lower", "p50"),
    Metric("samples_per_second", "Samples/s", lambda row: row.samples_per_second, "higher", "p50"),
)


@cache
def declared(name: str) -> Benchmark:
    """What the benchmark of that name says of itself."""
    from megaclass.bench import BENCHMARKS

    unknown = Benchmark(name, name, "", Case, _ANY, "samples_per_second", prepare=_not_here)
    return BENCHMARKS.get(name, unknown)


def _not_here(*_: Any) -> Any:
    raise NotImplementedError("a benchmark of which there are only rows")


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
    """The number of a row that is ``ok``; None where it has none."""
    try:
        return number(metric.read(row))
    except (KeyError, TypeError, ZeroDivisionError):  # rows of others may lack what ours have
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


def differing(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys in which cases differ."""
    found = list(cases)
    keys = dict.fromkeys(key for case in found for key in case)
    return [key for key in keys if len({key_of(case.get(key)) for case in found}) > 1]


def unfolded(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cases with the settings (``section.key``) in which they differ as keys of their own, by the last part of
    their names where that is enough."""
    settings = [found if isinstance(found := case.get("settings"), dict) else {} for case in cases]
    differ = differing(settings)
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


def chosen(row: Row, key: str) -> bool:
    """Whether somebody chose that key of the row's unfolded case: a parameter that sweeps, or a setting."""
    return key not in row.case or bool(declared(row.benchmark).fields().get(key, {}).get("sweeps"))


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
