"""Rows of a study, from what its runs left: ``result.json`` and ``events.jsonl``."""

import datetime
from collections.abc import Mapping
from typing import Any

from megaclass.bench.old_stability.cases import StabilityCase
from megaclass.bench.old_stability.study import Study
from megaclass.bench.sweep import row_key
from megaclass.errors import UserError
from megaclass.results import machine
from megaclass.results.events import StepEvent, read_events
from megaclass.results.rows import Row
from megaclass.results.rundir import RunDirectory
from megaclass.results.stats import summary


def row_of(study: Study, seed: int, failure: str = "") -> Row:
    """The row of a seed that is done, or that has failed for that reason."""
    case = study.case_of(seed)
    samples_ms = step_times(study.run_of(seed), case.global_batch_size)
    common: dict[str, Any] = {
        "implementation": "megaclass",
        "benchmark": case.benchmark,
        "case": case.parameters(),
        "key": key_of(case),
        "samples_ms": samples_ms,
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    result = None if failure else study.result_of(seed)
    if result is None:
        return Row(**common, status="failed", reason=failure, environment=machine.snapshot())
    return Row(
        **common,
        status="ok",
        step_ms=summary(samples_ms) if samples_ms else {},
        samples_per_second=result["samples_per_second"],
        result=flat_result(result),
        environment=result["environment"],
    )


def key_of(case: StabilityCase) -> str:
    return row_key(case, "megaclass")  # type: ignore[arg-type]  # it has all that a key takes


def step_times(run: RunDirectory, global_batch_size: int) -> list[float]:
    """Milliseconds a step of each interval between two log lines; evaluations and checkpoints do not count."""
    if not run.events.is_file():
        return []
    try:
        events = read_events(run.events)
    except UserError:  # of a run that failed: its reason is told, and this would hide it
        return []
    speeds = (event.samples_per_second for event in events if isinstance(event, StepEvent))
    return [round(global_batch_size / speed * 1000, 4) for speed in speeds if speed]


def flat_result(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics by their names, those by rate with the rate behind (``tar_at_far_1e-2``), loss and time to train."""
    found: dict[str, float | None] = {}
    for kind in ("verification", "classification"):
        for name, value in result.get(kind, {}).items():
            inner = {name: value} if name != "tar_at_far" else {f"{name}_{k}": v for k, v in value.items()}
            found |= {k: v for k, v in inner.items() if v is None or isinstance(v, int | float)}
    return found | {name: result[name] for name in ("final_loss", "seconds", "steps")}
