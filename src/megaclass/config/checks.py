"""Which values are allowed, alone and together."""

import dataclasses
import math
from typing import Any

from megaclass.config.sections import TRACKERS, Augment, Config, Interval, conditions, options, values
from megaclass.errors import UserError, near_match


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Every ``section.key`` that has another value, with both."""
    now = values(after)
    return {key: (old, now[key]) for key, old in values(before).items() if old != now[key]}


def absent(config: Config) -> dict[str, str]:
    """The keys that do not exist beside the values of others, each with the reason."""
    found, given = {}, values(config)
    for key in options():
        for other, wanted in conditions(key).items():
            if not (given[other] in wanted if wanted else given[other]):
                names = " or ".join(map(repr, wanted)) or "set"
                found[key] = f"only where {other} is {names}, and it is {given[other]!r}"
                break
    return found


def check(config: Config, together: bool = True) -> None:
    """UserError for the first value outside its limits, or, ``together``, at odds with another."""
    for key, (_, value) in differences(Config(), config).items():
        check_alone(key, value)
    for at_odds, message in _together(config) if together else []:
        if at_odds:
            raise UserError(message)


def check_alone(key: str, value: Any) -> None:
    """UserError for a value outside the limits of its ``section.key``."""
    f = options()[key]
    choices, low, high = (f.metadata[name] for name in ("choices", "low", "high"))
    if choices and value not in choices:
        names = [str(choice) for choice in choices]
        raise UserError(f"{key}: {value!r} is not one of {', '.join(names)}{near_match(str(value), names)}")
    for number in value if isinstance(value, tuple) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{key}: {number!r} is not a number to work with")
        if low is not None and number < low:
            raise UserError(f"{key}: {number!r} is below {low}")
        if high is not None and number > high:
            raise UserError(f"{key}: {number!r} is above {high}")
    if f.type == Interval and (len(value) != 2 or value[0] > value[1]):
        raise UserError(f"{key}: {value!r} is not a lowest and a highest number")


def _together(config: Config) -> list[tuple[bool, str]]:
    """(whether values are at odds, what to say of it)"""
    data, evaluate, schedule, speed = config.data, config.evaluate, config.schedule, config.speed
    stages, augment = config.model.checkpoint_stages, config.augment
    task, lacks, clashes = evaluate.task, _lacking_in_dali(config), _clashes_with_graphs(config)
    track = config.run.track
    return [
        (track not in ("none", "auto") and not set(track.split(",")) <= set(TRACKERS),
         f"run.track: {track!r} is neither none nor auto, nor some of {', '.join(TRACKERS)} with ',' between"),
        (data.source in ("records", "folder") and not data.path,
         f"data.path: needed for data.source {data.source!r}; set --data.path DIRECTORY"),
        (data.source == "synthetic" and data.num_classes == 0,
         "data.num_classes: needed for data.source 'synthetic'"),
        (data.loader == "dali" and bool(lacks),
         f"data.loader: 'dali' crops, flips and resizes only, to one size, not {lacks}; leave that out, or set "
         "data.loader to 'threads'"),
        (augment.policy == "timm" and augment.policy_magnitude > 10,
         f"augment.policy_magnitude: {augment.policy_magnitude} is above 10, the largest with augment.policy 'timm'"),
        (config.head.margin == "per_class" and not config.head.class_margins,
         "head.class_margins: needed for head.margin 'per_class'; set --head.class_margins FILE, a margin a line"),
        (data.global_batch_size % data.accumulation > 0,
         f"data.global_batch_size: {data.global_batch_size} is no multiple of data.accumulation {data.accumulation}"),
        (data.start_size > data.image_size,
         f"data.start_size: {data.start_size} is above data.image_size {data.image_size}"),
        (not stages or any(stage != int(stage) for stage in stages),
         f"model.checkpoint_stages: {stages} are not one or more whole numbers"),
        (config.model.checkpoint_activations and speed.compile == "whole",
         "speed.compile: 'whole' does not go with model.checkpoint_activations; compile 'blocks', or neither"),
        (speed.cuda_graphs and bool(clashes), f"speed.cuda_graphs: does not go with {clashes}; leave one out"),
        (speed.overlap_head and config.precision.compute == "fp16",
         "speed.overlap_head: not with precision.compute 'fp16', where steps that only look for the loss scale would "
         "move the centres; use bf16"),
        (not (schedule.steps or schedule.samples or schedule.epochs),
         "schedule.epochs: 0 with schedule.samples 0 and schedule.steps 0 trains nothing"),
        (task == "classification" and config.head.kind != "linear",
         "evaluate.task: 'classification' needs head.kind 'linear'"),
        (not evaluate.path and (task == "classification" or (task == "verification" and data.source != "glyphs")),
         f"evaluate.path: needed for evaluate.task {task!r}, or set --evaluate.task none"),
        (evaluate.pairs < 2 * evaluate.folds,
         f"evaluate.pairs: {evaluate.pairs} cannot fill evaluate.folds {evaluate.folds} with two each"),
    ]  # fmt: skip


def _lacking_in_dali(config: Config) -> str:
    """The changes of images that are asked for and that DALI does not make."""
    able = ("flip", "crop_scale_min", "mixup", "cutmix")
    wanted = [f.name for f in dataclasses.fields(Augment) if f.type is float and f.name not in able]
    found = [f"augment.{name}" for name in wanted if getattr(config.augment, name)]
    found += ["augment.policy"] * (config.augment.policy != "none")
    found += ["data.orientations"] * (config.data.orientations > 1)
    return ", ".join(found + ["data.start_size"] * (config.data.start_size > 0))


def _clashes_with_graphs(config: Config) -> str:
    """What is asked for and cannot be replayed as one CUDA graph."""
    against = {
        "data.start_size": config.data.start_size > 0,
        "data.accumulation above 1": config.data.accumulation > 1,
        "model.sync_norm": config.model.sync_norm,
        "model.checkpoint_activations": config.model.checkpoint_activations,
        "speed.compile 'whole'": config.speed.compile == "whole",
    }
    return ", ".join(name for name, holds in against.items() if holds)
