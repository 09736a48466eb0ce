"""The configuration of a run: what can be set, what it means, what is allowed.

A recipe is a TOML file that holds only what differs from the defaults here. Every section is a frozen
dataclass; every field carries its documentation and its limits, which the command line, ``megaclass show``
and the checks all read. Standard library only: importing this costs milliseconds.
"""

import dataclasses
import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaclass.errors import UserError, near_match

RECIPES = Path(__file__).parent / "recipes"


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    interval: bool = False,
) -> Any:
    """A documented field; ``low`` and ``high`` are inclusive limits, of each element for a list. An
    ``interval`` is a list of a lowest and a highest number."""
    metadata = {"doc": doc, "choices": choices, "low": low, "high": high, "interval": interval}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run lives and how it reports."""

    output: str = option("", "run directory; empty: the next free runs/<recipe>-NNN")
    seed: int = option(0, "seed of weights, order of samples, augmentation and sampling", low=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    deterministic: bool = option(False, "ask PyTorch for deterministic kernels (slower on a GPU)")
    threads: int = option(
        0,
        "CPU threads per process; 0: OMP_NUM_THREADS, or the cores shared by the processes of a machine",
        low=0,
    )
    log_every: int = option(20, "steps between log lines", low=1)
    checkpoint_every: int = option(0, "steps between checkpoints; 0: at evaluations and at the end", low=0)
    keep_last: int = option(2, "how many of the latest checkpoints stay, besides the best", low=1)
    max_skipped: int = option(10, "stop after so many steps in a row with a non-finite gradient", low=1)
    timeout_s: float = option(600.0, "seconds until a rank that waits for another gives up", low=1)
    tensorboard: bool = option(True, "write TensorBoard events too, where tensorboard is installed")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on."""

    source: str = option("glyphs", "kind of data set", choices=("glyphs", "records", "folder", "synthetic"))
    path: str = option(
        "",
        "records: directory with train.rec and train.idx; folder: one directory per class; several: with ':' between",
    )
    num_classes: int = option(0, "number of classes; 0: as the data says", low=0)
    num_samples: int = option(1_000_000, "synthetic: images per epoch", low=1)
    held_out: int = option(400, "glyphs: characters kept for verification", low=2)
    image_size: int = option(
        112, "height and width of the images that the backbone sees, pixels", low=8, high=2048
    )
    global_batch_size: int = option(128, "images per optimizer step, over all ranks and micro-batches", low=1)
    accumulation: int = option(1, "micro-batches per optimizer step", low=1)
    orientations: int = option(
        1,
        "1; 2 or 4: quarter turns of a class are classes too; 8: their mirror images as well",
        low=1,
        high=8,
    )
    normalise: str = option("symmetric", "pixel values to [-1, 1], or by ImageNet's mean and deviation",
                            choices=("symmetric", "imagenet"))  # fmt: skip
    workers: int = option(0, "decoding threads per process; 0: one per CPU core of the process", low=0)
    on_error: str = option(
        "fail", "a damaged image ends the run, or is replaced and counted", choices=("fail", "skip")
    )
    loader: str = option("threads", "what decodes: threads of ours, or NVIDIA's DALI (crop, flip and resize only)",
                         choices=("threads", "dali"))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of training images; each one is drawn from (seed, number of the sample) alone."""

    flip: bool = option(False, "mirror left-right with probability 1/2 (faces, photographs; not characters)")
    rotate_degrees: float = option(0.0, "rotation, drawn from +- this many degrees", low=0, high=180)
    scale: float = option(0.0, "size, drawn from 1 +- this", low=0, high=0.9)
    translate: float = option(0.0, "shift, drawn from +- this fraction of the image", low=0, high=1)
    shear_degrees: float = option(0.0, "shear, drawn from +- this many degrees", low=0, high=60)
    stretch: float = option(
        0.0, "wider and lower, or higher and narrower, by up to this share", low=0, high=0.9
    )
    crop_scale_min: float = option(
        1.0, "random resized crop: smallest area fraction; 1: no crop", low=0.01, high=1
    )
    low_resolution_probability: float = option(0.0, "share of images scaled down and up again", low=0, high=1)
    low_resolution: list[float] = option([0.5, 0.8], "side of such an image on the way, as a share",
                                         low=0.01, high=1, interval=True)  # fmt: skip
    blur_probability: float = option(0.0, "share of images under a Gaussian blur", low=0, high=1)
    blur_radius: int = option(2, "of the blur: pixels either side, drawn from 1 to this", low=1, high=64)
    light_probability: float = option(0.0, "share of images with another brightness and contrast",
                                      low=0, high=1)  # fmt: skip
    brightness: list[float] = option([0.8, 1.2], "factor of all values", low=0, high=10, interval=True)
    contrast: list[float] = option([0.8, 1.2], "factor of distances from mid-grey",
                                   low=0, high=10, interval=True)  # fmt: skip
    colour_probability: float = option(0.0, "share of images with another hue and saturation", low=0, high=1)
    hue_degrees: list[float] = option([0.0, 20.0], "turn of the hue", low=-180, high=180, interval=True)
    saturation: list[float] = option([1.0, 1.2], "factor of the saturation", low=0, high=10, interval=True)
    grey_probability: float = option(0.0, "share of images without colour", low=0, high=1)
    mixup: float = option(0.0, "linear head: alpha of the Beta distribution that mixes pairs of images; 0: none",
                          low=0, high=100)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Model:
    """The backbone."""

    name: str = option("iresnet50", "backbone; `megaclass recipes` lists the names")
    embedding_dim: int = option(512, "columns of an embedding (fixed by the model for resnet50: 2048)", low=1)
    width: int = option(64, "channels of the first stage; later stages scale with it", low=8)
    dropout: float = option(0.0, "dropout before the embedding", low=0, high=0.95)
    stem: str = option("imagenet", "resnet: 7x7 stride 2 and pooling, or 3x3 for small images",
                       choices=("imagenet", "small"))  # fmt: skip
    checkpoint_activations: bool = option(False, "recompute activations in backward: less memory, more time")
    sync_norm: bool = option(False, "batch statistics over all ranks: results do not depend on their number")
    weights: str = option(
        "", "start from these backbone weights (.pt of arcface_torch or torchvision, or ours)"
    )


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns embeddings and labels into a loss."""

    kind: str = option("margin", "margin: identities; linear: classification", choices=("margin", "linear"))
    m1: float = option(1.0, "target logit: scale * (cos(m1 * theta + m2) - m3)", low=0.1, high=4)
    m2: float = option(0.5, "ArcFace: 0.5", low=0, high=2)
    m3: float = option(0.0, "CosFace: 0.4 (with m2 = 0)", low=0, high=1)
    scale: float = option(64.0, "length that the embeddings are scaled to", low=1, high=75)
    gradient: str = option("straight_through", "of the margin; straight_through is what arcface_torch trains with",
                           choices=("straight_through", "exact"))  # fmt: skip
    filter_threshold: float = option(
        0.0, "negatives with a cosine above this leave the sum; 0: none do", low=-1, high=1
    )
    sample_rate: float = option(
        1.0, "fraction of the classes scored in a step (Partial FC)", low=1e-9, high=1
    )
    parallelism: str = option(
        "model", "classes sharded over ranks, or all on each", choices=("model", "data")
    )
    precision: str = option(
        "fp32", "operands of the head's products; logits are fp32", choices=("fp32", "tf32", "bf16", "fp16")
    )
    storage: str = option(
        "fp32",
        "of centres and momentum; int8: 8 bits and a scale a row; rowwise: no momentum matrix (docs/heads.md)",
        choices=("fp32", "bf16", "int8", "fp32_rowwise", "bf16_rowwise", "int8_rowwise"),
    )
    placement: str = option(
        "device",
        "where centres lie; host: in the machine's memory, for sampled heads larger than the device",
        choices=("device", "host"),
    )
    kernels: str = option(
        "auto",
        "triton, or plain torch; auto: Triton on CUDA where it works",
        choices=("auto", "triton", "torch"),
    )
    weights: str = option(
        "", "start from these centres: a directory of arcface_torch's checkpoint_gpu_RANK.pt files"
    )
    tile_mb: float = option(0.0, "memory of one class tile, MB; 0: 16 on a CPU, 256 on a GPU", low=0)
    label_smoothing: float = option(
        0.0, "linear head: share of the target spread over all classes", low=0, high=0.9
    )


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How the weights move."""

    name: str = option(
        "sgd", "optimizer of the backbone (the margin head uses SGD)", choices=("sgd", "adamw")
    )
    lr: float = option(0.1, "base learning rate, for the global batch as it is", low=0)
    head_lr_factor: float = option(1.0, "the margin head's learning rate over the backbone's", low=0)
    momentum: float = option(0.9, "momentum of SGD; first beta of AdamW", low=0, high=0.9999)
    weight_decay: float = option(5e-4, "weight decay of backbone and head", low=0)
    decay_norms: bool = option(False, "weight decay on norm parameters and biases too (arcface_torch: true)")
    clip_grad_norm: float = option(5.0, "largest norm of the backbone's gradient; 0: no clipping", low=0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, and the learning rate on the way."""

    epochs: float = option(20.0, "passes over the training set", low=0)
    steps: int = option(0, "optimizer steps, instead of epochs, where above 0", low=0)
    kind: str = option("polynomial", "decay after the warm-up",
                       choices=("constant", "polynomial", "cosine", "multistep"))  # fmt: skip
    warmup: float = option(0.0, "linear warm-up, as a fraction of the run", low=0, high=1)
    power: float = option(
        1.0, "polynomial: power of the decay; 1, a straight line, is arcface_torch's", low=0.01
    )
    milestones: list[float] = option([0.33, 0.66, 0.9], "multistep: fractions of the run", low=0, high=1)
    gamma: float = option(0.1, "multistep: factor at a milestone", low=0.0001, high=1)
    final_factor: float = option(
        0.0, "polynomial, cosine: learning rate at the end over the base", low=0, high=1
    )


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Arithmetic of the backbone."""

    compute: str = option("auto", "auto: bf16 where the hardware has it, else fp32",
                          choices=("auto", "fp32", "tf32", "bf16", "fp16"))  # fmt: skip
    tf32: bool = option(False, "fp16, bf16: products that stay in fp32 may use tf32 (CUDA)")
    channels_last: bool = option(True, "NHWC memory format, faster in low precision")
    init_scale: float = option(65536.0, "fp16: first loss scale", low=1)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is measured during and after training."""

    task: str = option("verification", "what to measure", choices=("none", "verification", "classification"))
    path: str = option("", "data set to evaluate on, or .bin files with ':' between; glyphs make their own")
    every: int = option(0, "steps between evaluations; 0: only at the end", low=0)
    batch_size: int = option(256, "images per evaluation batch and rank", low=1)
    flip: bool = option(False, "verification: add the embedding of the mirrored image (faces)")
    pairs: int = option(6000, "verification: pairs drawn, half of them the same identity", low=20)
    pairs_file: str = option("", "verification: a pairs.txt, for images or records under path")
    folds: int = option(10, "verification: folds of the threshold's cross-validation", low=2)
    ways: int = option(20, "one-shot: classes per episode", low=2)
    episodes: int = option(2000, "one-shot: episodes; 0: no one-shot accuracy", low=0)
    resize: int = option(
        0, "classification: shorter side before the centre crop; 0: resize to the square", low=0
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete run."""

    recipe: str = ""
    description: str = ""
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    head: Head = field(default_factory=Head)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    precision: Precision = field(default_factory=Precision)
    evaluate: Evaluate = field(default_factory=Evaluate)


SECTIONS: dict[str, type] = {
    f.name: f.default_factory  # type: ignore[misc]
    for f in dataclasses.fields(Config)
    if f.default_factory is not dataclasses.MISSING
}


def options() -> dict[str, dataclasses.Field]:
    """Every ``section.key`` with its field, in the order of the file."""
    return {f"{s}.{f.name}": f for s, section in SECTIONS.items() for f in dataclasses.fields(section)}


# -- reading ------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    return sorted(p.stem for p in RECIPES.glob("*.toml"))


def find_recipe(name: str) -> Path:
    """The file of an embedded recipe or of a path to a TOML file (a run's config.toml, say)."""
    if name.endswith(".toml"):
        path = Path(name)
        if path.is_file():
            return path
        raise UserError(f"recipe file {name}: no such file")
    path = RECIPES / f"{name}.toml"
    if path.is_file():
        return path
    known = recipe_names()
    raise UserError(
        f"no recipe {name!r}{near_match(name, known)}; the recipes are {', '.join(known)}, or give a .toml file"
    )


def load_recipe(name: str) -> Config:
    """Read and check a recipe. UserError names the file and the key that is wrong."""
    path = find_recipe(name)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    try:
        return from_mapping({"recipe": path.stem} | tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_mapping(tree: Mapping[str, Any], base: Config | None = None) -> Config:
    """``base`` (the defaults) with the nested mapping's values put in, checked."""
    base = base or Config()
    top: dict[str, Any] = {}
    for name, value in tree.items():
        if name in SECTIONS:
            if not isinstance(value, Mapping):
                raise UserError(f"{name} is a section: write [{name}] and its keys below")
            top[name] = dataclasses.replace(getattr(base, name), **_typed(name, value))
        elif name in ("recipe", "description"):
            if not isinstance(value, str):
                raise UserError(f"{name}: {value!r} is not a text")
            top[name] = value
        else:
            known = [*SECTIONS, "recipe", "description"]
            raise UserError(f"unknown section {name!r}{near_match(name, known)}")
    config = dataclasses.replace(base, **top)
    check(config)
    return config


def require_known(key: str) -> None:
    """UserError, with the near match, unless ``key`` is a ``section.key`` that exists."""
    known = list(options())
    if key not in known:
        section = key.partition(".")[0]
        # The likelier ones first: names that begin like this one, then those of the section.
        near = near_match(key, [k for k in known if k.startswith(key)])
        near = (
            near
            or near_match(key, [k for k in known if k.startswith(f"{section}.")])
            or near_match(key, known)
        )
        raise UserError(f"unknown key {key!r}{near}; `megaclass show RECIPE --all` lists them")


def _typed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(SECTIONS[section])}
    result = {}
    for name, value in values.items():
        require_known(f"{section}.{name}")
        result[name] = _convert(f"{section}.{name}", value, fields[name].type)
    return result


def _convert(key: str, value: Any, kind: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if kind == list[float] and isinstance(value, list):
        return [_convert(key, v, float) for v in value]
    if kind in (int, bool, str) and type(value) is kind:
        return value
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}.get(
        kind, "a list of numbers"
    )
    raise UserError(f"{key}: {value!r} is not {wanted}")


# -- checking -----------------------------------------------------------------------------------------


def check(config: Config) -> None:
    """UserError for the first value outside its limits, or at odds with another."""
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
    if schedule.steps == 0 and schedule.epochs == 0:
        raise UserError("schedule.epochs: 0 with schedule.steps 0 trains nothing")
    if head.kind == "margin" and head.placement == "host" and head.sample_rate == 1.0:
        raise UserError(
            "head.placement: 'host' fetches the rows of a sample: set head.sample_rate below 1 with it, e.g. 0.1"
        )
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


def ignored(config: Config) -> list[str]:
    """Settings that have no effect in this configuration, with the reason.

    Those that are as the defaults or the embedded recipe have them are passed over: nobody asked for them.
    """
    c, source, task = config, config.data.source, config.evaluate.task
    margin_only = ("m1", "m2", "m3", "scale", "gradient", "filter_threshold", "sample_rate", "parallelism",
                   "precision", "storage", "placement", "kernels",
                   "weights", "tile_mb")  # fmt: skip
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
        (c.schedule.kind != "polynomial", f"schedule.kind {c.schedule.kind!r}", ["schedule.power"]),
        (c.schedule.kind != "multistep", f"schedule.kind {c.schedule.kind!r}",
         ["schedule.milestones", "schedule.gamma"]),
        (c.schedule.kind in ("constant", "multistep"), f"schedule.kind {c.schedule.kind!r}", ["schedule.final_factor"]),
        (c.schedule.steps > 0, "schedule.steps", ["schedule.epochs"]),
        (source == "synthetic", "data.source 'synthetic'",
         ["data.path", "data.orientations", "data.on_error", "data.workers", "data.loader", *augmenting]),
        (source != "synthetic", f"data.source {source!r}", ["data.num_samples"]),
        (source != "glyphs", f"data.source {source!r}", ["data.held_out"]),
        (c.precision.compute != "fp16", f"precision.compute {c.precision.compute!r}", ["precision.init_scale"]),
        (c.precision.compute in ("fp32", "tf32"), f"precision.compute {c.precision.compute!r}", ["precision.tf32"]),
        (task == "none", "evaluate.task 'none'", [f"evaluate.{n}" for n in ("path", "every", "batch_size")]),
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


# -- writing ------------------------------------------------------------------------------------------


def to_mapping(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def to_toml(config: Config, *, only_changed: bool = False, docs: bool = False) -> str:
    """The configuration as TOML: complete, or what differs from the defaults; optionally commented."""
    default = Config()
    lines = [f"{name} = {_literal(getattr(config, name))}" for name in ("recipe", "description")]
    for section_name, section in SECTIONS.items():
        ours, theirs = getattr(config, section_name), getattr(default, section_name)
        body = []
        for f in dataclasses.fields(section):
            value = getattr(ours, f.name)
            if not only_changed or value != getattr(theirs, f.name):
                comment = f"  # {documented(f)}" if docs else ""
                body.append(f"{f.name} = {_literal(value)}{comment}")
        if body:
            lines += ["", f"[{section_name}]", *body]
    return "\n".join(lines) + "\n"


def documented(f: dataclasses.Field) -> str:
    """One line about an option: what it means, and its choices or bounds where it has any."""
    choices = ("lowest, highest",) if f.metadata["interval"] else f.metadata["choices"]
    return f.metadata["doc"] + (f" ({' | '.join(choices)})" if choices else "")


def _literal(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)  # TOML reads Python's shortest form
    # TOML's basic strings escape as JSON's do, except that DEL must be escaped as well.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
