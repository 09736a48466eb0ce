"""Which settings have no effect beside others."""

import dataclasses
import os

from megaclass.config.recipes import load_recipe, recipe_names
from megaclass.config.sections import Augment, Config


def ignored(config: Config) -> list[str]:
    """Settings that have no effect in this configuration, with the reason.

    Those that are as the defaults or the embedded recipe have them are passed over: nobody asked for them.
    """
    c, source, task = config, config.data.source, config.evaluate.task
    margin_only = ("margin", "m1", "m2", "m3", "scale", "gradient", "filter_threshold", "sample_rate", "parallelism",
                   "precision", "storage", "kernels",
                   "weights", "tile_mb", "shard_group")  # fmt: skip
    pairs_only = ("flip", "pairs", "pairs_file", "folds", "ways", "episodes")
    augmenting = [f"augment.{f.name}" for f in dataclasses.fields(Augment) if f.name != "mixup"]
    without = [
        (not getattr(c.augment, f"{change}_probability"), f"augment.{change}_probability 0",
         [f"augment.{name}" for name in names])
        for change, names in (
            ("low_resolution", ["low_resolution"]),
            ("blur", ["blur_radius"]),
            ("light", ["brightness", "contrast"]),
            ("colour", ["hue_degrees", "saturation"]),
        )
    ]  # fmt: skip
    rules: list[tuple[bool, str, list[str]]] = [
        (c.head.kind == "linear", "head.kind 'linear'", [f"head.{n}" for n in margin_only] + ["optim.head_lr_factor"]),
        (c.head.kind == "margin", "head.kind 'margin'", ["head.label_smoothing"]),
        (c.head.margin != "combined", f"head.margin {c.head.margin!r}", ["head.m1", "head.m2", "head.m3"]),
        (c.schedule.kind != "polynomial", f"schedule.kind {c.schedule.kind!r}", ["schedule.power"]),
        (c.schedule.kind != "multistep", f"schedule.kind {c.schedule.kind!r}",
         ["schedule.milestones", "schedule.gamma"]),
        (c.schedule.kind in ("constant", "multistep"), f"schedule.kind {c.schedule.kind!r}", ["schedule.final_factor"]),
        (c.schedule.steps > 0, "schedule.steps", ["schedule.epochs", "schedule.samples"]),
        (c.schedule.samples > 0, "schedule.samples", ["schedule.epochs"]),
        (c.schedule.warmup_epochs > 0, "schedule.warmup_epochs", ["schedule.warmup"]),
        (c.evaluate.every_epochs > 0, "evaluate.every_epochs", ["evaluate.every"]),
        (c.data.start_size == 0, "data.start_size 0", ["data.full_size_at"]),
        (c.optim.lr_batch_size == 0, "optim.lr_batch_size 0", ["optim.lr_scaling"]),
        (c.optim.name != "lars", f"optim.name {c.optim.name!r}", ["optim.trust"]),
        (not c.model.checkpoint_activations, "model.checkpoint_activations false", ["model.checkpoint_stages"]),
        (c.head.kind == "linear", "head.kind 'linear'", ["speed.overlap_head"]),
        (c.head.parallelism == "data", "head.parallelism 'data'", ["head.shard_group"]),
        (source == "synthetic", "data.source 'synthetic'",
         ["data.path", "data.orientations", "data.on_error", "data.workers", "data.loader", *augmenting]),
        (source != "synthetic", f"data.source {source!r}", ["data.num_samples"]),
        (source != "glyphs", f"data.source {source!r}", ["data.held_out"]),
        (c.precision.compute != "fp16", f"precision.compute {c.precision.compute!r}", ["precision.init_scale"]),
        (c.precision.compute in ("fp32", "tf32"), f"precision.compute {c.precision.compute!r}", ["precision.tf32"]),
        (task == "none", "evaluate.task 'none'",
         [f"evaluate.{n}" for n in ("path", "every", "every_epochs", "batch_size", "image_size")]),
        (task != "verification", f"evaluate.task {task!r}", [f"evaluate.{n}" for n in pairs_only]),
        (task != "classification", f"evaluate.task {task!r}", ["evaluate.resize"]),
        (bool(c.evaluate.pairs_file), "evaluate.pairs_file",
         ["evaluate.pairs", "evaluate.folds", "evaluate.ways", "evaluate.episodes"]),
        (all(part.endswith(".bin") for part in c.evaluate.path.split(os.pathsep)), "a .bin in evaluate.path",
         ["evaluate.pairs", "evaluate.ways", "evaluate.episodes"]),
        *without,
    ]  # fmt: skip
    bases = [Config(), load_recipe(config.recipe)] if config.recipe in recipe_names() else [Config()]

    def changed(key: str) -> bool:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        return all(value != getattr(getattr(base, section), name) for base in bases)

    return [
        f"{key} has no effect with {why}"
        for holds, why, keys in rules
        if holds
        for key in keys
        if changed(key)
    ]
