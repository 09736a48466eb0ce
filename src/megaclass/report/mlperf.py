"""A run's events as the log of MLPerf Training's ResNet-50, for ``python -m mlperf_logging.compliance_checker``.

What a run does not know, as who submits it, is not in the log unless it is said. Times are those of the wall clock.
Between evaluations lies a block of epochs, as the rules allow: 4.0.0, the last ones with this task; mlcommons/logging.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaclass.config import load_recipe
from megaclass.config.steps import steps_of
from megaclass.errors import UserError
from megaclass.report.sources import machines_of
from megaclass.results.events import EndEvent, EvaluationEvent, StartEvent, read_events
from megaclass.results.rundir import RunDirectory

_TASK = {"model": "resnet50", "train_samples": 1_281_167, "eval_samples": 50_000, "top 1": 0.759}  # ImageNet


def mllog(directory: Path, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines of the log, and what keeps it from being a result of MLPerf's. words: ``org=Lab``, ``status=research``.

    Raises UserError: other words; no run, one never evaluated as a classification, or of a version without times.
    """
    if wrong := [word for word in words if not all(word.partition("="))]:
        raise UserError(f"--submission: {wrong[0]!r} is not KEY=VALUE, as org=Lab")
    run = RunDirectory(directory)
    if not run.events.is_file():
        raise UserError(f"--mllog: {directory} is no run directory: it has no events.jsonl")
    events = read_events(run.events)
    start = next(event for event in events if isinstance(event, StartEvent))
    scored = [event for event in events if isinstance(event, EvaluationEvent) and "top1" in event.metrics]
    if not scored:
        raise UserError(f"--mllog: {run.events}: no evaluation of a classification; set evaluate.task")
    end = next((e for e in events[events.index(scored[-1]) :] if isinstance(e, EndEvent)), None)
    if start.at is None:
        raise UserError(f"--mllog: {run.events}: written by a version that noted no times; train again")
    lines: list[str] = []

    def add(at_s: float, key: str, value: Any = None, **metadata: Any) -> None:
        ends = {"start": "INTERVAL_START", "stop": "INTERVAL_END"}
        kind = ends.get(key.rpartition("_")[2], "POINT_IN_TIME")
        record = {"namespace": "", "time_ms": round(1000 * at_s), "event_type": kind, "key": key}
        lines.append(f":::MLLOG {json.dumps(record | {'value': value, 'metadata': metadata})}")

    begun, began, before = start.at, start.at - (start.init_s or 0.0), 0
    platform = machines_of([start.environment]).popitem()[1].name
    about = {"benchmark": "resnet", "division": "open", "platform": platform}
    about |= {key: value for key, _, value in (word.partition("=") for word in words)}
    about = {f"submission_{key}": value for key, value in about.items()}
    for key, value in (about | {"cache_clear": False, "init_start": None}).items():
        add(began, key, value)
    facts = _facts(run, start) | {"eval_samples": scored[-1].metrics.get("images")}
    best = max(event.metrics["top1"] for event in scored)
    task = facts | {"model": facts.pop("model"), "top 1": min(best, _TASK["top 1"])}
    for key, value in (facts | {"init_stop": None, "run_start": None}).items():
        add(begun, key, value)
    for event in scored:
        stop = event.at or begun
        trained = stop - (event.seconds or 0.0)
        epoch = round(event.step * facts["global_batch_size"] / facts["train_samples"], 2)
        at = {"epoch_num": epoch if epoch % 1 else int(epoch)}
        add(begun, "block_start", first_epoch_num=before + 1, epoch_count=max(1, round(epoch) - before))
        add(trained, "block_stop", first_epoch_num=before + 1)
        add(trained, "eval_start", **at)
        add(stop, "eval_accuracy", event.metrics["top1"], **at)
        add(stop, "eval_stop", **at)
        before, begun = round(epoch), stop
    lacks = [f"{key} is {task[key]}, MLPerf's {value}" for key, value in _TASK.items() if task[key] != value]
    lacks += [f"{key} is not said" for key in ("submission_org", "submission_status") if key not in about]
    if end is not None:
        reached = end.reason == "finished" and best >= _TASK["top 1"]
        add(end.at or begun, "run_stop", status="success" if reached else "aborted")
    return lines, lacks


def _facts(run: RunDirectory, start: StartEvent) -> dict[str, Any]:
    """What was trained on what, and the settings by MLPerf's names."""
    config, samples = load_recipe(str(run.config), stored=True), start.epoch_samples or 1
    data, optim, schedule, steps = config.data, config.optim, config.schedule, steps_of(config, samples)
    warmup = steps.warmup * data.global_batch_size / samples
    parts = data.accumulation * (1 if config.model.sync_norm else start.world_size)
    name = {"sgd": "sgd_opt", "lars": "lars_opt"}.get(optim.name, "opt")
    facts = {
        "model": config.model.name,
        "seed": config.run.seed,
        "global_batch_size": data.global_batch_size,
        "gradient_accumulation_steps": data.accumulation,
        "model_bn_span": data.global_batch_size // parts,
        "opt_name": optim.name,
        f"{name}_base_learning_rate": steps.base_lr,
        f"{name}_end_learning_rate": steps.base_lr * schedule.final_factor,
        f"{name}_learning_rate_decay_steps": steps.total - steps.warmup,
        f"{name.removeprefix('sgd_')}_learning_rate_warmup_epochs": round(warmup, 3),
        f"{name}_momentum": optim.momentum,
        f"{name}_weight_decay": optim.weight_decay,
        "train_samples": samples,
        **({"lars_epsilon": 0.0} if optim.name == "lars" else {}),  # there is none
    }
    power = {f"{name}_learning_rate_decay_poly_power": schedule.power}
    return facts | power if schedule.kind == "polynomial" else facts
