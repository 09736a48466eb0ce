"""Numbers and cases in words."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from megaclass.results.rows import Row, setting_text

NAMES = {
    "global_batch_size": "global batch",
    "batch_size": "batch",
    "num_classes": "classes",
    "embedding_dim": "embedding size",
    "image_size": "image size",
    "world_size": "devices",
    "simulate_ranks": "simulated ranks",
    "tf32": "TF32 beside",
    "size_bytes": "message",
    "iterations": "steps an epoch",
    "warmup": "warm-up",
    "op": "operation",
}
# How often something is measured: a case with fewer steps is still the same case.
HOW_OFTEN = ("iterations", "epochs", "warmup", "steps", "calls")
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
    return (
        f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}"
        if size >= 1 or not size
        else f"{value:.3g}"
    )


def quotient_text(value: float) -> str:
    """Two digits behind the point; below 0.1 three that count."""
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.3g}"


def short(count: float) -> str:
    """100000 as 100K, 1500000 as 1.5M: all its digits, fewer zeros."""
    for size, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.15g}{suffix}"
    return f"{count:g}"


def bytes_text(count: float) -> str:
    for size, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{count / size:.4g} {suffix}"
    return f"{count:g} B"


def name_of(key: str) -> str:
    return NAMES.get(key, key.replace("_", " "))


def rate_text(case: Mapping[str, Any], at: str = "at") -> str:
    """`` at 0.1`` where a case scores a part of the classes in a step, or nothing."""
    rate = case.get("sample_rate") or 0
    return f" {at} {rate:g}" if 0 < rate < 1 else ""


def classes_text(case: Mapping[str, Any]) -> str:
    """``100K classes at rate 0.1``."""
    return f"{short(case['num_classes'])} classes{rate_text(case, 'at rate')}"


def value_text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if (found := number(value)) is not None:
        if key == "num_classes":
            return short(found)
        return bytes_text(found) if key == "size_bytes" else f"{found:,.12g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {value_text(k, v)}" for k, v in value.items()) or "none"
    return setting_text(value)


def case_text(case: Mapping[str, Any], keys: Iterable[str] | None = None) -> str:
    """``recipe faces_r50, classes 618K, ..``: of these keys, or all."""
    chosen = [key for key in (case if keys is None else keys) if key in case]
    return ", ".join(f"{name_of(key)} {value_text(key, case[key])}" for key in chosen)


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
    free = (*HOW_OFTEN, "threads", "world_size")
    return any(key not in free and row.case.get(key) != value for key, value in row.asked.items())


def key_of(case: Mapping[str, Any]) -> str:
    """Equal for equal cases, whatever the order of their keys."""
    return json.dumps(case, sort_keys=True, default=str)
