"""Numbers and cases in words, and what benchmarks declare of them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from megaclass.bench import BENCHMARKS
from megaclass.bench.case import SPEED, Benchmark, Case, Metric, Turns, latency
from megaclass.results.rows import Row, number, setting_text

OURS = "megaclass"


def digits(value: float) -> str:
    """Four digits that count, no more than a measurement has; thousands with commas."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    places = 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:.{places}f}" if size >= 1 or not size else f"{value:.3g}"


def short(count: float) -> str:
    """100000 as 100K, 1500000 as 1.5M: all its digits, fewer zeros."""
    for size, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.15g}{suffix}"
    return f"{count:g}"


# -- what benchmarks declare ----------------------------------------------------------------------------


def declared(name: str) -> Benchmark:
    """What the benchmark of that name says of itself; of one that this megaclass does not know, what all have."""
    metrics = (latency("p50", "Median step, ms"), SPEED)
    unknown = Benchmark(name, name, "", Case, metrics, "samples_per_second", prepare=lambda *_: Turns())
    return BENCHMARKS.get(name, unknown)


def effort() -> set[str]:
    """How often and in what portions something was measured, whatever the benchmark: no other case, and no column."""
    fields = (item for one in BENCHMARKS.values() for item in one.fields().items())
    return {name for name, data in fields if data.get("effort")}


def read(metric: Metric, row: Row) -> float | None:
    """The number of a row that is ``ok``; None where it has none."""
    try:
        return number(metric.read(row))
    except (KeyError, TypeError, ZeroDivisionError):  # rows of others may lack what ours have
        return None


# -- cases ----------------------------------------------------------------------------------------------


def name_of(key: str) -> str:
    """What tables call the parameter: as the last benchmark that has it says."""
    if "." in key:  # a setting is called what a command line calls it
        return key
    known = (one.fields() for one in reversed(BENCHMARKS.values()))
    told = next((fields[key] for fields in known if key in fields), {})
    return told.get("title") or key.replace("_", " ")


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


def flat(case: Mapping[str, Any]) -> dict[str, Any]:
    """The case with its settings (``section.key``) as keys of their own."""
    settings = case.get("settings")
    if not isinstance(settings, dict):
        return dict(case)
    return {key: value for key, value in case.items() if key != "settings"} | settings


def per_device(case: Mapping[str, Any]) -> float | None:
    """The batch of a device."""
    batch, devices = number(case.get("global_batch_size")), number(case.get("world_size", 1))
    return batch / devices if batch and devices else None


def changes(asked: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """What a suite changed of the case that was asked for, to fit it to the machine; empty where nothing."""
    changed = []
    for key in (key for key, wanted in asked.items() if case.get(key) != wanted):
        wanted, got = asked[key], case.get(key)
        if key == "world_size" and case.get("simulate_ranks") == wanted:
            changed.append(f"1 of {wanted} simulated ranks")
        elif key == "world_size":
            changed.append(f"the whole job on {got} instead of {wanted} devices")
        elif key != "simulate_ranks" or case.get("world_size") == asked.get("world_size"):
            told = value_text(key, got) if key in case else "left out"
            changed.append(f"{name_of(key)} {value_text(key, wanted)} → {told}")
    return ", ".join(changed)


def scaled_down(row: Row) -> bool:
    """Whether a suite changed what was measured, not only in how many steps, or that fewer devices did all of it."""
    free = {*effort(), "threads", "world_size"}
    return any(key not in free and row.case.get(key) != value for key, value in row.asked.items())
