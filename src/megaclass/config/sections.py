"""What can be set: a frozen dataclass for each section, every field with its documentation and its limits.

Some settings choose what else can be set: ``head.kind`` a margin head or a linear one, ``data.source`` a kind of data
set, ``schedule.kind`` a decay. A field says by ``only`` where it exists: elsewhere it cannot be given, is not written,
and keeps its default.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

SET: tuple[Any, ...] = ()  # in ``only``: any value but 0, false and the empty text
Only = Mapping[str, tuple[Any, ...]]
TRACKERS = ("tensorboard", "wandb", "mlflow")
Interval = tuple[float, float]  # a lowest and a highest number
Numbers = tuple[float, ...]


def option(
    default: Any,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    *,
    choices: tuple[Any, ...] = (),
    path: bool = False,
    only: Only | None = None,
) -> Any:
    """A documented field.

    low, high: inclusive limits, of each element of several; the default is allowed beside them. path: one path, or
    several with ``:`` between. only: the field exists where each of these keys has one of these values.
    """
    metadata = {"doc": doc, "low": low, "high": high, "choices": choices, "path": path, "only": only}
    return field(default=default, metadata=metadata)


MARGIN: Only = {"head.kind": ("margin",)}
COMBINED: Only = {**MARGIN, "head.margin": ("combined",)}
OF_CLASSES: Only = {**MARGIN, "head.margin": ("per_class",)}
LINEAR: Only = {"head.kind": ("linear",)}
RANDAUGMENT: Only = {"augment.policy": ("randaugment", "timm")}
BCE: Only = {**LINEAR, "head.loss": ("bce",)}
IMAGES: Only = {"data.source": ("glyphs", "records", "folder")}
GLYPHS: Only = {"data.source": ("glyphs",)}
NOISE: Only = {"data.source": ("synthetic",)}
STARTED: Only = {"model.weights": SET}
GROWING: Only = {"data.start_size": SET}
RECOMPUTED: Only = {"model.checkpoint_activations": SET}
AVERAGED: Only = {"optim.ema_decay": SET}
LARS: Only = {"optim.name": ("lars",)}
SCALED_LR: Only = {"optim.lr_batch_size": SET}
EPOCHS: Only = {"schedule.steps": (0,), "schedule.samples": (0,)}
MULTISTEP: Only = {"schedule.kind": ("multistep",)}
DECAY: Only = {"schedule.kind": ("polynomial", "cosine")}
LOW_PRECISION: Only = {"precision.compute": ("auto", "bf16", "fp16")}
LOW_RESOLUTION: Only = {"augment.low_resolution_probability": SET}
BLUR: Only = {"augment.blur_probability": SET}
LIGHT: Only = {"augment.light_probability": SET}
COLOUR: Only = {"augment.colour_probability": SET}
MEASURED: Only = {"evaluate.task": ("verification", "classification")}
PAIRS: Only = {"evaluate.task": ("verification", "none")}  # none: `megaclass evaluate` measures later
CLASSES: Only = {"evaluate.task": ("classification", "none")}
DRAWN_PAIRS: Only = {**PAIRS, "evaluate.pairs_file": ("",)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run lives and how it reports."""

    output: str = option("", "run directory; empty: the next free runs/<recipe>-NNN", path=True)
    seed: int = option(0, "seed of weights, order of samples, augmentation and sampling", 0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    deterministic: bool = option(False, "ask PyTorch for deterministic kernels (slower on a GPU)")
    threads: int = option(0, "CPU threads per process; 0: OMP_NUM_THREADS, or its share of the cores", 0, 4096)
    log_every: int = option(20, "steps between log lines", 1)
    checkpoint_minutes: float = option(15.0, "minutes between checkpoints; 0: not by time", 0, 1e6)
    checkpoint_every: int = option(0, "steps between checkpoints besides; 0: at evaluations and at the end", 0)
    keep_last: int = option(2, "how many of the latest checkpoints stay, besides the best", 1)
    keep_every: int = option(0, "the checkpoints at multiples of so many steps stay too; 0: none", 0)
    async_save: bool = option(True, "train on while a checkpoint is written, from a copy in memory")
    grace_s: float = option(25.0, "seconds after SIGTERM or Ctrl-C for a last checkpoint", 0, 1e6)
    on_divergence: str = option(
        "stop",
        "too many bad steps: end, or roll back to the last checkpoint at half the rate; skip: end, and leave steps out "
        "whose loss spikes",
        choices=("stop", "skip", "rollback"),
    )
    max_skipped: int = option(10, "so many steps in a row with a non-finite gradient are too many", 1)
    max_skipped_share: float = option(0.5, "and so is this share of all steps", 0, 1)
    timeout_s: float = option(600.0, "seconds until a rank that waits for another gives up", 1)
    heartbeat_s: float = option(30.0, "seconds of silence after which a rank counts as lost; 0: never", 0)
    track: str = option(
        "auto",
        "numbers also go to some of tensorboard, wandb, mlflow (',' between), or none; auto: tensorboard if installed",
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on."""

    source: str = option("glyphs", "kind of data set", choices=("glyphs", "records", "folder", "synthetic"))
    path: str = option("", "directory or address of the set; several: with ':' between", path=True, only=IMAGES)
    num_classes: int = option(0, "number of classes; 0: as the data says", 0)
    num_samples: int = option(1_000_000, "images per epoch", 1, only=NOISE)
    held_out: int = option(400, "characters kept for verification", 2, only=GLYPHS)
    image_size: int = option(112, "height and width of the images that the backbone sees, pixels", 8, 2048)
    start_size: int = option(0, "progressive resizing: height and width at the start; 0: as later", 8, 2048)
    full_size_at: float = option(0.75, "part of the run until images have image_size", 0, 1, only=GROWING)
    grow_from: float = option(0.0, "part of the run until images begin to grow", 0, 1, only=GROWING)
    global_batch_size: int = option(128, "images per optimizer step, over all ranks and micro-batches", 1)
    accumulation: int = option(1, "micro-batches per optimizer step", 1)
    orientations: int = option(
        1, "2, 4: turns of a class are classes too; 8: mirrored as well", choices=(1, 2, 4, 8), only=IMAGES
    )
    normalise: str = option(
        "symmetric",
        "pixels to [-1, 1], or by ImageNet's mean and deviation",
        choices=("symmetric", "imagenet"),
    )
    workers: int = option(0, "decoding threads per process; 0: one per CPU core of the process", 0, 4096)
    on_error: str = option("fail", "at a damaged image: end, or take another", choices=("fail", "skip"), only=IMAGES)
    loader: str = option(
        "threads", "NVIDIA's DALI crops, flips and resizes only", choices=("threads", "dali"), only=IMAGES
    )


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of training images; each one is drawn from (seed, number of the sample) alone."""

    only: ClassVar[Only] = IMAGES

    flip: bool = option(False, "mirror left-right with probability 1/2 (faces, photographs; not characters)")
    rotate_degrees: float = option(0.0, "rotation, drawn from +- this many degrees", 0, 180)
    scale: float = option(0.0, "size, drawn from 1 +- this", 0, 0.9)
    translate: float = option(0.0, "shift, drawn from +- this fraction of the image", 0, 1)
    shear_degrees: float = option(0.0, "shear, drawn from +- this many degrees", 0, 60)
    stretch: float = option(0.0, "wider and lower, or higher and narrower, by up to this share", 0, 0.9)
    crop_scale_min: float = option(1.0, "random resized crop: smallest area fraction; 1: no crop", 0.01, 1)
    low_resolution_probability: float = option(0.0, "share of images scaled down and up again", 0, 1)
    low_resolution: Interval = option((0.5, 0.8), "side on the way, as a share", 0.01, 1, only=LOW_RESOLUTION)
    blur_probability: float = option(0.0, "share of images under a Gaussian blur", 0, 1)
    blur_radius: int = option(2, "pixels either side, drawn from 1 to this", 1, 64, only=BLUR)
    light_probability: float = option(0.0, "share of images with another brightness and contrast", 0, 1)
    brightness: Interval = option((0.8, 1.2), "factor of all values", 0, 10, only=LIGHT)
    contrast: Interval = option((0.8, 1.2), "factor of distances from mid-grey", 0, 10, only=LIGHT)
    colour_probability: float = option(0.0, "share of images with another hue and saturation", 0, 1)
    hue_degrees: Interval = option((0.0, 20.0), "turn of the hue", -180, 180, only=COLOUR)
    saturation: Interval = option((1.0, 1.2), "factor of the saturation", 0, 10, only=COLOUR)
    grey_probability: float = option(0.0, "share of images without colour", 0, 1)
    policy: str = option("none", "torchvision's, or timm's", choices=("none", "randaugment", "trivialaugment", "timm"))
    policy_ops: int = option(2, "operations an image", 1, 16, only=RANDAUGMENT)
    policy_magnitude: int = option(9, "of 30, with timm of 10", 0, 30, only=RANDAUGMENT)
    policy_std: float = option(0.0, "deviation of it", 0, 10, only={"augment.policy": ("timm",)})
    erase_probability: float = option(0.0, "share of images with a box painted over", 0, 1)
    repeats: int = option(1, "times that an image comes on end, each under other changes", 1, 7)
    mixup: float = option(0.0, "alpha of the Beta distribution that mixes pairs of images", 0, 100, only=LINEAR)
    cutmix: float = option(0.0, "of a box pasted; beside mixup: half the steps each", 0, 100, only=LINEAR)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The backbone."""

    name: str = option("iresnet50", "backbone; `megaclass recipes` lists the names; or timm/NAME")
    embedding_dim: int = option(512, "columns of an embedding (fixed by the model for resnet50: 2048)", 1)
    width: int = option(64, "channels of the first stage; later stages scale with it", 8)
    dropout: float = option(0.0, "dropout before the embedding; resnet: of it", 0, 0.95)
    stem: str = option(
        "imagenet",
        "resnet: deep is ResNet-D's of three 3x3; small one 3x3, for small images",
        choices=("imagenet", "deep", "small"),
    )
    shortcut: str = option("stride", "resnet: pool is ResNet-D's, the mean of 2x2 pixels", choices=("stride", "pool"))
    checkpoint_activations: bool = option(False, "recompute activations in backward: less memory, more time")
    checkpoint_stages: Numbers = option((1.0, 2.0, 3.0, 4.0), "of these stages", 1, 4, only=RECOMPUTED)
    drop_path: float = option(0.0, "vit, resnet, timm: share of images that skip the last residual branch", 0, 0.95)
    mask_ratio: float = option(0.0, "vit: share of patches left out in training", 0, 0.95)
    sync_norm: bool = option(False, "batch statistics over all ranks: results do not depend on their number")
    weights: str = option(
        "",
        "to start from: a run, a checkpoint, or a file of ours, torchvision's, timm's or arcface_torch's",
        path=True,
    )


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns embeddings and labels into a loss."""

    only: ClassVar[Only] = MARGIN

    kind: str = option("margin", "identities, or classification", choices=("margin", "linear"), only={})
    margin: str = option("combined", "combined: of m1, m2, m3; arcface, adaface, magface, ...: as published")
    m1: float = option(1.0, "target logit: scale * (cos(m1 * theta + m2) - m3)", 0.1, 4, only=COMBINED)
    m2: float = option(0.5, "ArcFace: 0.5", 0, 2, only=COMBINED)
    m3: float = option(0.0, "CosFace: 0.4 (with m2 = 0)", 0, 1, only=COMBINED)
    margin_options: str = option("", "the margin's own numbers, such as 'm=0.4, h=0.333'; default: its paper's")
    class_margins: str = option("", "file of a margin a class, in label order", path=True, only=OF_CLASSES)
    scale: float = option(64.0, "length that the embeddings are scaled to", 1, 75)
    gradient: str = option(
        "auto",
        "of the margin's angle; auto: as its published code, straight_through as arcface_torch",
        choices=("auto", "straight_through", "exact"),
    )
    filter_threshold: float = option(0.0, "negatives with a cosine above this leave the sum; 0: none", -1, 1)
    sub_centres: int = option(1, "centres of each class, the nearest counts (sub-center ArcFace); plain PyTorch", 1, 16)
    sample_rate: float = option(1.0, "fraction of the classes scored in a step (Partial FC)", 1e-9, 1)
    parallelism: str = option("model", "classes sharded over ranks, or all on each", choices=("model", "data"))
    shard_group: str = option(
        "world",
        "classes sharded over all ranks, or over those of each node",
        choices=("world", "node"),
        only={**MARGIN, "head.parallelism": ("model",)},
    )
    precision: str = option("fp32", "operands of products; logits are fp32", choices=("fp32", "tf32", "bf16"))
    storage: str = option(
        "fp32",
        "of centres and momentum; int8_rowwise: 8 bits and a scale a row, no momentum matrix",
        choices=("fp32", "bf16", "int8_rowwise"),
    )
    kernels: str = option(
        "auto", "auto: Triton on CUDA where it works, else torch", choices=("auto", "triton", "torch")
    )
    recompute: str = option(
        "auto",
        "plain PyTorch: exponentials computed again, or kept where they are small (auto) or in any case (never)",
        choices=("auto", "always", "never"),
    )
    weights: str = option(
        "",
        "to start from: a run (classes by name), or arcface_torch's checkpoints; linear: torchvision's too",
        path=True,
        only={},
    )
    new_classes: str = option(
        "mean",
        "classes that the run of head.weights lacks: mean of the embeddings of their images, or random",
        choices=("mean", "random"),
        only={**MARGIN, "head.weights": SET},
    )
    tile_mb: float = option(0.0, "memory of one class tile, MB; 0: 8 on a CPU, 256 on a GPU", 0)
    label_smoothing: float = option(0.0, "share of the target spread over all classes", 0, 0.9, only=LINEAR)
    loss: str = option("softmax", "one for all classes, or one each", choices=("softmax", "bce"), only=LINEAR)
    bce_threshold: float = option(0.0, "targets above it are 1, others 0; 0: as they are", 0, 0.99, only=BCE)


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How the weights move."""

    name: str = option("sgd", "of the backbone (the margin head uses SGD)", choices=("sgd", "lars", "adamw", "lamb"))
    lr: float = option(0.1, "base learning rate, for lr_batch_size images a step", 0, 1e30)
    lr_batch_size: int = option(0, "images a step that lr is for, scaled to the batch; 0: lr as it is", 0)
    lr_scaling: str = option(
        "linear", "lr grows as the batch or its square root", choices=("linear", "sqrt"), only=SCALED_LR
    )
    head_lr_factor: float = option(1.0, "the margin head's learning rate over the backbone's", 0, only=MARGIN)
    momentum: float = option(0.9, "momentum of SGD; first beta of AdamW and LAMB", 0, 0.9999)
    weight_decay: float = option(5e-4, "weight decay of backbone and head", 0)
    decay_norms: bool = option(False, "weight decay on norm parameters and biases too (arcface_torch: true)")
    trust: float = option(0.001, "step of a layer over the norm of its weights, at lr 1", 1e-6, only=LARS)
    ema_decay: float = option(0.0, "moving average of the weights, evaluated in their place", 0, 0.999999)
    ema_every: int = option(1, "steps from one weight of the average to the next", 1, only=AVERAGED)
    clip_grad_norm: float = option(5.0, "largest norm of the backbone's gradient; 0: no clipping", 0)
    layer_decay: float = option(
        1.0, "learning rate of each layer of the backbone over that of the next (BEiT: 0.65 to 0.75)", 0.01, 1
    )
    freeze_backbone_epochs: float = option(
        0.0,
        "the head trains alone for so many epochs; as many as the run has: to the end",
        0,
        1e6,
        only=STARTED,
    )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, and the learning rate on the way."""

    epochs: float = option(20.0, "passes over the training set", 0, 1e6, only=EPOCHS)
    samples: int = option(0, "images, instead of epochs", 0, 10**12, only={"schedule.steps": (0,)})
    steps: int = option(0, "optimizer steps, instead of epochs or samples", 0, 10**12)
    kind: str = option(
        "polynomial", "decay after the warm-up", choices=("constant", "polynomial", "cosine", "multistep")
    )
    warmup: float = option(0.0, "linear warm-up, part of the run", 0, 1, only={"schedule.warmup_epochs": (0,)})
    warmup_epochs: float = option(0.0, "linear warm-up in epochs, instead of a fraction", 0, 1e6)
    warmup_from: float = option(0.0, "learning rate at the start of the warm-up over the base", 0, 1)
    decay_in_warmup: bool = option(False, "the decay counts the steps of the warm-up (timm)", only=DECAY)
    power: float = option(1.0, "of the decay; arcface_torch: 1", 0.01, only={"schedule.kind": ("polynomial",)})
    milestones: Numbers = option((0.33, 0.66, 0.9), "fractions of the run", 0, 1, only=MULTISTEP)
    gamma: float = option(0.1, "factor at a milestone", 0.0001, 1, only=MULTISTEP)
    final_factor: float = option(0.0, "learning rate at the end over the base", 0, 1, only=DECAY)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Arithmetic of the backbone."""

    compute: str = option(
        "auto", "auto: bf16, or fp32 where that is emulated", choices=("auto", "fp32", "tf32", "bf16", "fp16")
    )
    tf32: bool = option(False, "CUDA: products that stay in fp32 may use tf32", only=LOW_PRECISION)
    channels_last: bool = option(True, "NHWC memory format, faster in low precision")
    init_scale: float = option(65536.0, "first loss scale", 1, only={"precision.compute": ("fp16",)})


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a step costs: the same numbers sooner, but for compression."""

    compile: str = option(
        "auto",
        "torch.compile the backbone; auto: by blocks on CUDA where it works, for images of one size",
        choices=("auto", "none", "blocks", "whole"),
    )
    cuda_graphs: bool = option(False, "CUDA: replay the backbone's kernels as one graph, for small batches")
    keep_memory: bool = option(True, "CPU: freed memory is kept for the next step, not given back (glibc)")
    overlap_head: bool = option(False, "ranks: centres move while the last gradients travel", only=MARGIN)
    bucket_mb: float = option(0.0, "ranks: gradients that travel together, MB; 0: as PyTorch has it", 0)
    gradient_compression: str = option(
        "none", "of the backbone's gradients as they travel", choices=("none", "fp16", "bf16")
    )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is measured during and after training."""

    task: str = option("verification", "what to measure", choices=("none", "verification", "classification"))
    path: str = option("", "data set, or .bin files with ':' between (not of glyphs)", path=True, only=MEASURED)
    every: int = option(
        0, "steps between evaluations; 0: at the end", 0, only={**MEASURED, "evaluate.every_epochs": (0,)}
    )
    every_epochs: float = option(0.0, "epochs between evaluations, instead of steps", 0, 1e6, only=MEASURED)
    batch_size: int = option(256, "images per evaluation batch and rank", 1)
    flip: bool = option(False, "add what the mirrored image gives")
    pairs: int = option(6000, "drawn, half of the same identity; a .bin has its own", 20, only=DRAWN_PAIRS)
    pairs_file: str = option("", "a pairs.txt as LFW's, for images under path", path=True, only=PAIRS)
    thresholds: str = option(
        "exact",
        "tried for pair accuracy: all, or InsightFace's grid of squared distances",
        choices=("exact", "insightface"),
        only=PAIRS,
    )
    folds: int = option(10, "folds of the threshold's cross-validation", 2, only=DRAWN_PAIRS)
    ways: int = option(20, "one-shot: classes per episode", 2, only=DRAWN_PAIRS)
    episodes: int = option(2000, "one-shot: episodes; 0: no one-shot accuracy", 0, only=DRAWN_PAIRS)
    image_size: int = option(0, "height and width of evaluated images; 0: data.image_size", 8, 2048)
    resize: int = option(0, "shorter side before the centre crop; 0: none", 0, only=CLASSES)


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
    speed: Speed = field(default_factory=Speed)
    evaluate: Evaluate = field(default_factory=Evaluate)


SECTIONS: dict[str, type] = {
    f.name: f.default_factory  # type: ignore[misc]
    for f in dataclasses.fields(Config)
    if f.default_factory is not dataclasses.MISSING
}


@functools.cache
def options() -> dict[str, dataclasses.Field]:
    """Every ``section.key`` with its field, in the order of the file."""
    return {f"{s}.{f.name}": f for s, section in SECTIONS.items() for f in dataclasses.fields(section)}


def conditions(key: str) -> Only:
    """Where ``section.key`` exists: the keys that it depends on, and their values that it exists beside."""
    section = SECTIONS[key.partition(".")[0]]
    only = options()[key].metadata["only"]
    return getattr(section, "only", {}) if only is None else only


def values(config: Config) -> dict[str, Any]:
    """Every ``section.key`` with its value, in the order of the file."""
    return {f"{s}.{name}": value for s in SECTIONS for name, value in vars(getattr(config, s)).items()}


DEFAULTS = values(Config())
