"""A run's events as the log of MLPerf Training's ResNet-50, for ``python -m mlperf_logging.compliance_checker``.

What a run does not know, as who submits it, is not in the log unless it is said. Times are those of the clock on the
wall. Between evaluations lies a block of epochs, as MLPerf allows, and ``run_stop`` has the status ``success`` where an
evaluation came to the top 1 that MLPerf asks for. Rules 4.0.0, the last ones with this benchmark: mlcommons/logging.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megaclass.config import load_recipe
from megaclass.config.steps import steps_of
from megaclass.errors import UserError
from megaclass.report.sources import machines_of
from megaclass.results.events import EndEvent, EvaluationEvent, StartEvent, read_events
from megaclass.results.rundir import RunDirectory

_SAID = ("org", "division", "status", "platform", "poc_name", "poc_email")
_ASKED = ("submission_org", "submission_status")  # of these only who submits knows
_TASK = {"model": "resnet50", "train_samples": 1_281_167, "eval_samples": 50_000}  # ImageNet
_TOP1 = 0.759


def said(words: list[str]) -> dict[str, str]:
    """``org=Lab status=research`` by key. UserError: another key, or no value."""
    found = {key: value for key, _, value in (word.partition("=") for word in words)}
    if wrong := next((key for key, value in found.items() if key not in _SAID or not value), None):
        raise UserError(f"--submission: {wrong!r} is not KEY=VALUE with one of {', '.join(_SAID)}")
    return {f"submission_{key}": value for key, value in found.items()}


def mllog(directory: Path, submission: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The lines of the log, and what keeps it from being a result of MLPerf's.

    Raises UserError: no run, one that classifies nothing or was never evaluated, or one of a version without times.
    """
    run = RunDirectory(directory)
    if not run.events.is_file():
        raise UserError(f"--mllog: {directory} is no run directory: it has no events.jsonl")
    events = read_events(run.events)
    start = next(event for event in events if isinstance(event, StartEvent))
    scored = [event for event in events if isinstance(event, EvaluationEvent) and "top1" in event.metrics]
    if not scored:
        raise UserError(f"--mllog: {run.events}: no evaluation of a classification; set evaluate.task")
    if any(event.at is None for event in (start, *scored)):
        raise UserError(f"--mllog: {run.events}: written by a version that noted no times; train again")
    log = _Log()
    platform = {"submission_platform": machines_of([start.environment]).popitem()[1].name}
    about = {"submission_benchmark": "resnet", "submission_division": "open"} | platform | dict(submission)
    task, facts = _facts(run, start, scored[-1])
    begun = start.at or 0.0
    log.points(begun - (start.init_s or 0.0), about | {"cache_clear": False})
    log.add(begun - (start.init_s or 0.0), "init_start")
    log.points(begun, facts | {key: value for key, value in task.items() if key != "model"})
    log.add(begun, "init_stop")
    log.add(begun, "run_start")
    size, epoch_samples, before = facts["global_batch_size"], start.epoch_samples or 1, 0
    for event in scored:
        stop = event.at or 0.0
        trained = stop - (event.seconds or 0.0)
        epoch = round(event.step * size / epoch_samples, 2)
        at = {"epoch_num": epoch if epoch % 1 else int(epoch)}
        log.add(begun, "block_start", first_epoch_num=before + 1, epoch_count=max(1, round(epoch) - before))
        log.add(trained, "block_stop", first_epoch_num=before + 1)
        log.add(trained, "eval_start", **at)
        log.add(stop, "eval_accuracy", event.metrics["top1"], **at)
        log.add(stop, "eval_stop", **at)
        before, begun = round(epoch), stop
    best, end = max(event.metrics["top1"] for event in scored), events[-1]
    if isinstance(end, EndEvent) and end.at is not None:
        reached = end.reason == "finished" and best >= _TOP1
        log.add(end.at, "run_stop", status="success" if reached else "aborted")
    lacks = [
        f"{key} is {task.get(key)}, MLPerf's {value}"
        for key, value in _TASK.items()
        if task.get(key) != value
    ]
    lacks += [f"top 1 is {best:.4f}, MLPerf's {_TOP1}"] if best < _TOP1 else []
    lacks += [f"{key} is not said: --submission {key.split('_')[1]}=.." for key in _ASKED if key not in about]
    return log.lines, lacks if isinstance(end, EndEvent) else [*lacks, "the run has not ended"]


def _facts(
    run: RunDirectory, start: StartEvent, scored: EvaluationEvent
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was trained on what, and the settings by MLPerf's names."""
    config = load_recipe(str(run.config), stored=True)
    data, optim, schedule = config.data, config.optim, config.schedule
    task = {
        "model": config.model.name,
        "train_samples": start.epoch_samples,
        "eval_samples": scored.metrics.get("images"),
    }
    steps = steps_of(config, start.epoch_samples or 1)
    parts = 1 if config.model.sync_norm else start.world_size
    warmup = steps.warmup * data.global_batch_size / (start.epoch_samples or 1)
    name = {"sgd": "sgd_opt", "lars": "lars_opt"}.get(optim.name, "opt")
    facts = {
        "seed": config.run.seed,
        "global_batch_size": data.global_batch_size,
        "gradient_accumulation_steps": data.accumulation,
        "model_bn_span": data.global_batch_size // (parts * data.accumulation),
        "opt_name": optim.name,
        f"{name}_base_learning_rate": steps.base_lr,
        f"{name}_end_learning_rate": steps.base_lr * schedule.final_factor,
        f"{name}_learning_rate_decay_steps": steps.total - steps.warmup,
        f"{name.removeprefix('sgd_')}_learning_rate_warmup_epochs": round(warmup, 3),
        f"{name}_momentum": optim.momentum,
        f"{name}_weight_decay": optim.weight_decay,
    }
    if schedule.kind == "polynomial":
        facts[f"{name}_learning_rate_decay_poly_power"] = schedule.power
    return task, facts


class _Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def points(self, at_s: float, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if value is not None:
                self.add(at_s, key, value)

    def add(self, at_s: float, key: str, value: Any = None, **metadata: Any) -> None:
        kind = {"start": "INTERVAL_START", "stop": "INTERVAL_END"}.get(
            key.rpartition("_")[2], "POINT_IN_TIME"
        )
        record = {"namespace": "", "time_ms": round(1000 * at_s), "event_type": kind, "key": key}
        self.lines.append(f":::MLLOG {json.dumps(record | {'value': value, 'metadata': metadata})}")
