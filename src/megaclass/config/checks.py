"""Which values are allowed, alone and together."""

import dataclasses
import math

from megaclass.config.sections import Augment, Config, options
from megaclass.errors import UserError, near_match


def check(config: Config, together: bool = True) -> None:
    """UserError for the first value outside its limits, or, ``together``, at odds with another."""
    for key, f in options().items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        choices, low, high = f.metadata["choices"], f.metadata["low"], f.metadata["high"]
        if choices and value not in choices:
            raise UserError(
                f"{key}: {value!r} is not one of {', '.join(choices)}{near_match(value, choices)}"
            )
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{key}: {number!r} is not a number to work with")
            if low is not None and number < low:
                raise UserError(f"{key}: {number!r} is below {low}")
            if high is not None and number > high:
                raise UserError(f"{key}: {number!r} is above {high}")
        if f.metadata["interval"] and (len(value) != 2 or value[0] > value[1]):
            raise UserError(f"{key}: {value!r} is not a lowest and a highest number")
    if together:
        _check_together(config)


def _check_together(config: Config) -> None:
    data, head, evaluate, schedule = config.data, config.head, config.evaluate, config.schedule
    if data.source in ("records", "folder") and not data.path:
        raise UserError(f"data.path: needed for data.source {data.source!r}; set --data.path DIRECTORY")
    if data.source == "synthetic" and data.num_classes == 0:
        raise UserError("data.num_classes: needed for data.source 'synthetic'")
    if config.augment.mixup and head.kind != "linear":
        raise UserError(
            "augment.mixup: a margin head takes one class an image; set it to 0, or head.kind to 'linear'"
        )
    if data.loader == "dali":
        _check_dali(config)
    if data.orientations not in (1, 2, 4, 8):
        raise UserError(f"data.orientations: {data.orientations} is not 1, 2, 4 or 8")
    if data.global_batch_size % data.accumulation:
        raise UserError(
            f"data.global_batch_size: {data.global_batch_size} is not a multiple of "
            f"data.accumulation {data.accumulation}"
        )
    for key, size in (("data.start_size", data.start_size), ("evaluate.image_size", evaluate.image_size)):
        if 0 < size < 8:
            raise UserError(f"{key}: {size} is below 8; 0 leaves it out")
    if data.start_size > data.image_size:
        raise UserError(f"data.start_size: {data.start_size} is above data.image_size {data.image_size}")
    if data.start_size and data.loader == "dali":
        raise UserError("data.start_size: the images of data.loader 'dali' have one size; use 'threads'")
    _check_speed(config)
    stages = config.model.checkpoint_stages
    if not stages or any(stage != int(stage) for stage in stages):
        raise UserError(f"model.checkpoint_stages: {stages} are not one or more whole numbers")
    if 0 < schedule.epochs < schedule.warmup_epochs and not (schedule.steps or schedule.samples):
        raise UserError(
            f"schedule.warmup_epochs: {schedule.warmup_epochs:g} are more than schedule.epochs {schedule.epochs:g}"
        )
    if not (schedule.steps or schedule.samples or schedule.epochs):
        raise UserError("schedule.epochs: 0 with schedule.samples 0 and schedule.steps 0 trains nothing")
    if evaluate.task == "classification" and head.kind != "linear":
        raise UserError("evaluate.task: 'classification' needs head.kind 'linear'")
    if evaluate.task != "none" and data.source != "glyphs" and not evaluate.path:
        raise UserError(
            f"evaluate.path: needed for evaluate.task {evaluate.task!r}, or set --evaluate.task none"
        )
    if evaluate.task == "classification" and data.source == "glyphs" and not evaluate.path:
        raise UserError(
            "evaluate.path: the held-out glyphs are of other classes; name a set of the trained ones"
        )
    if evaluate.pairs < 2 * evaluate.folds:
        raise UserError(
            f"evaluate.pairs: {evaluate.pairs} cannot fill evaluate.folds {evaluate.folds} with two each"
        )


def _check_speed(config: Config) -> None:
    """UserError for ways of being fast that do not go together."""
    speed, recomputes = config.speed, config.model.checkpoint_activations
    if recomputes and speed.compile == "whole":
        raise UserError(
            "speed.compile: 'whole' does not go with model.checkpoint_activations; compile 'blocks', or neither"
        )
    if speed.cuda_graphs:
        against = {
            "data.start_size": config.data.start_size > 0,
            "data.accumulation above 1": config.data.accumulation > 1,
            "model.sync_norm": config.model.sync_norm,
            "model.checkpoint_activations": recomputes,
            "speed.compile 'whole'": speed.compile == "whole",
        }
        if named := [name for name, holds in against.items() if holds]:
            raise UserError(f"speed.cuda_graphs: does not go with {', '.join(named)}; leave one out")
    if speed.overlap_head and config.precision.compute == "fp16":
        raise UserError(
            "speed.overlap_head: not with precision.compute 'fp16', where steps that only look for the loss scale "
            "would move the centres; use bf16"
        )


def _check_dali(config: Config) -> None:
    """UserError for a change of images that DALI does not make. Those of ranges have no effect on their own."""
    able = ("flip", "crop_scale_min", "mixup")
    wanted = [
        f"augment.{f.name}"
        for f in dataclasses.fields(Augment)
        if f.name not in able and f.type is float and getattr(config.augment, f.name)
    ]
    if config.data.orientations > 1:
        wanted.append("data.orientations")
    if wanted and config.data.source != "synthetic":
        raise UserError(
            f"data.loader: 'dali' crops, flips and resizes only, not {', '.join(wanted)}; "
            "leave that out, or set data.loader to 'threads'"
        )
