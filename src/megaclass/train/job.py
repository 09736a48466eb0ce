"""From a configuration to the objects of a run: the one file that knows every registry."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from megaclass.config import Config
from megaclass.data.dataset import read_text
from megaclass.data.feed import DeviceFeed
from megaclass.data.mixup import Mixup
from megaclass.data.open import fingerprint
from megaclass.data.preprocessing import Preprocessing
from megaclass.data.sampler import rank_part
from megaclass.errors import UserError
from megaclass.evaluation.evaluators import (
    Evaluator,
    ImageReader,
    build_classifier,
    build_verifier,
    tell_of_overlap,
)
from megaclass.heads.linear import LinearHead
from megaclass.heads.margins import BaseMargin, build_margin
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.sgd import HeadSGD
from megaclass.heads.step import HeadOptions
from megaclass.models.norm import SynchronisedBatchNorm
from megaclass.parallel import groups
from megaclass.parallel.gradients import averaging
from megaclass.parallel.groups import Group, World
from megaclass.train.arithmetic import Arithmetic
from megaclass.train.average import WeightAverage
from megaclass.train.batches import TrainingData, training_data
from megaclass.train.foresight import require_room
from megaclass.train.model import (
    build_model,
    capture_graphs,
    compile_backbone,
    eager,
    input_function,
    preprocessing_of,
)
from megaclass.train.optimizer import build_optimizer
from megaclass.train.start import load_head, mean_embeddings, start_new_classes


@dataclass(kw_only=True)
class LocalParts(TrainingData):
    """What a rank makes for itself, without a word to the others."""

    config: Config
    world: World
    arithmetic: Arithmetic
    to_input: Callable[[Tensor], Tensor]
    backbone: nn.Module
    compiled: str  # none, blocks or whole
    margin: BaseMargin | None  # of a margin head
    evaluator: Evaluator | None


@dataclass(kw_only=True)
class Job(LocalParts):
    """Everything that trains. ``model`` and ``scorer`` are backbone and head as the loop calls them: wrapped
    where their gradients are averaged over ranks."""

    feed: DeviceFeed  # brings batches to the device
    mix: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # (images, labels, step) -> images, targets
    head: PartialFC | LinearHead
    started: str  # what to tell of head.weights
    model: nn.Module
    scorer: nn.Module
    optimizer: torch.optim.Optimizer
    head_optimizer: HeadSGD | None
    average: WeightAverage | None  # of the weights, where the configuration wants one
    scaler: torch.amp.GradScaler

    @property
    def total_steps(self) -> int:
        return self.steps.total

    @property
    def identity(self) -> dict[str, Any]:
        """By what a checkpoint of another model is told from one of this."""
        config = self.config
        return {
            "backbone": config.model.name,
            "embedding_dim": self.head.weight.shape[1],
            "image_size": config.data.image_size,
            "width": config.model.width,
            "head": config.head.kind,
            "num_classes": self.num_classes,
            # One is left out, as in checkpoints of earlier releases.
            **({"sub_centres": config.head.sub_centres} if config.head.sub_centres > 1 else {}),
            "backbone_optimizer": config.optim.name,
            # With these three alike, step n sees the same samples.
            "global_batch_size": config.data.global_batch_size,
            "training_samples": self.epoch_samples,
            "seed": config.run.seed,
        }

    @property
    def overlaps_head(self) -> bool:
        """Whether the head's step comes before the backbone's gradients are there."""
        wanted = self.config.speed.overlap_head and self.head_optimizer is not None
        return wanted and isinstance(self.model, DistributedDataParallel)

    def gradients_stay_local(self, stay: bool) -> contextlib.AbstractContextManager:
        """While micro-batches but the last run, DistributedDataParallel need not talk."""
        stack = contextlib.ExitStack()
        for module in (self.model, self.scorer):
            if stay and isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        return stack


def build_job(config: Config, world: World, say: Callable[[str], None] = print, head_group: Group | None = None) -> Job:
    """Build every part of a run; every rank calls.

    Files, weights and data sets come first, without a collective, so that bad input on one rank is told on all; then
    what the ranks make together. ``say`` receives lines about work that takes a while. ``head_group``: the ranks that
    share a margin head, where that is not the world.
    """
    parts = groups.together(lambda: local_parts(config, world, say))
    groups.agree(lambda: _facts(parts))
    backbone, optim, lr = parts.backbone, config.optim, parts.steps.base_lr
    head = _build_head(parts, int(backbone.embedding_dim), head_group)  # type: ignore[arg-type]
    head_optimizer = None
    scorer: nn.Module = head
    by_gradient: dict[str, nn.Module] = {"backbone": backbone}
    started = _start_head(head, parts) if config.head.weights else ""
    if isinstance(head, PartialFC):
        head_optimizer = HeadSGD(head, lr * optim.head_lr_factor, optim.momentum, optim.weight_decay)
    else:
        by_gradient["head"] = head
        scorer = _over_ranks(head, config, world)
    return Job(
        **vars(parts),
        feed=DeviceFeed(world.device),
        mix=Mixup(config.augment.mixup, parts.num_classes, config.run.seed, config.augment.cutmix),
        head=head,
        started=started,
        model=_over_ranks(backbone, config, world),
        scorer=scorer,
        optimizer=build_optimizer(optim, by_gradient.values(), lr),
        head_optimizer=head_optimizer,
        average=WeightAverage(by_gradient, optim.ema_decay) if optim.ema_decay else None,
        scaler=torch.amp.GradScaler(
            world.device.type,
            enabled=parts.arithmetic.needs_loss_scale,
            init_scale=config.precision.init_scale,
        ),
    )


# -- by each rank for itself: no collectives ------------------------------------------------------------


def local_parts(config: Config, world: World, say: Callable[[str], None] = print) -> LocalParts:
    """Everything that this rank makes for itself. UserError for what is wrong with settings, files or memory."""
    require_room(config, world)
    # The model first: its errors come at once, and to make a data set may take a while.
    backbone, arithmetic = build_model(config, world.device)
    _check_batch(config, world, backbone)
    data = training_data(config, world, say)
    require_room(config, world, data.num_classes)
    how = config.speed.compile
    if how == "auto" and config.data.start_size:  # it would be compiled for many sizes
        how = "none"
    compiled = compile_backbone(backbone, how, world.device)
    if config.speed.cuda_graphs:
        arithmetic = replace(arithmetic, keeps_casts=False)
        capture_graphs(config, backbone, arithmetic, compiled, world.size)
    return LocalParts(
        **vars(data),
        config=config,
        world=world,
        arithmetic=arithmetic,
        to_input=input_function(config, arithmetic),
        backbone=backbone,
        compiled=compiled,
        margin=_margin(config, data) if config.head.kind == "margin" else None,
        evaluator=_evaluator(config, arithmetic, data),
    )


def _margin(config: Config, data: TrainingData) -> BaseMargin:
    """One of classes is told the margins that the file has for them, or how many images they have."""
    head = config.head

    def numbers() -> Tensor:
        if head.margin != "per_class":
            labels = data.dataset.labels() if data.dataset else np.empty(0, np.int64)
            return torch.from_numpy(np.bincount(labels, minlength=data.num_classes))
        lines = read_text(Path(head.class_margins), "head.class_margins").rstrip().splitlines()
        try:
            margins_C = torch.tensor([float(line) for line in lines])
            if not (lines and ((margins_C >= 0) & (margins_C <= 2)).all()):
                raise ValueError("empty, or not all lie in [0, 2], as of radians")
            return margins_C
        except ValueError as error:
            raise UserError(f"head.class_margins: {head.class_margins}: {error}; a number a line") from None

    names = ("scale", "gradient", "filter_threshold", *("m1", "m2", "m3")[: 3 * (head.margin == "combined")])
    settings = {name: getattr(head, name) for name in names}
    return build_margin(head.margin, head.margin_options, numbers, **settings)


def _facts(parts: LocalParts) -> dict[str, Any]:
    """What another rank has to have as well, and might not: its disk may hold other data under the same names."""
    config = parts.config
    facts: dict[str, Any] = {
        "images of data.path": parts.epoch_samples,
        "classes of data.path": parts.num_classes,
        "speed.compile": parts.compiled,
    }
    paths = {
        "data.path": config.data.path or str(parts.glyph_set / "train" if parts.glyph_set else ""),
        "evaluate.path": config.evaluate.path,
        "model.weights": config.model.weights,
        "head.weights": config.head.weights,
        "head.class_margins": config.head.class_margins,
    }
    return facts | {f"content of {key}": fingerprint(path) for key, path in paths.items() if path}


def _check_batch(config: Config, world: World, backbone: nn.Module) -> None:
    """UserError unless the global batch can be shared, and every part has statistics to normalise by (and
    pairs to mix)."""
    size, micro_batches = config.data.global_batch_size, config.data.accumulation
    parts = world.size * micro_batches
    count = len(rank_part(0, size, 0, world.size, micro_batches)) // micro_batches
    alone = count == 1 and not (config.model.sync_norm and world.size > 1)
    if alone and any(isinstance(m, nn.BatchNorm1d | SynchronisedBatchNorm) for m in backbone.modules()):
        raise UserError(
            f"data.global_batch_size: {size} leaves one image for each of {parts} parts (ranks times "
            f"data.accumulation), and {config.model.name} has batch norm; take {2 * parts} or more"
        )
    mixes = [name for name in ("mixup", "cutmix") if getattr(config.augment, name)]
    if mixes and count % 2:
        raise UserError(
            f"augment.{mixes[0]}: pairs of images are mixed, but data.global_batch_size {size} leaves {count} for each "
            f"of {parts} parts (ranks times data.accumulation); take a multiple of {2 * parts}"
        )


def image_reader(config: Config, arithmetic: Arithmetic, preprocessing: Preprocessing | None = None) -> ImageReader:
    """What reads images for a network: of this configuration, or for one of other preprocessing."""
    preprocessing = preprocessing or preprocessing_of(config)
    return ImageReader(
        transform=preprocessing.transform(),
        batch_size=config.evaluate.batch_size,
        workers=config.data.workers or torch.get_num_threads(),
        device=arithmetic.device,
        to_input=partial(preprocessing.to_input, device=arithmetic.device, channels_last=arithmetic.channels_last),
        precision=arithmetic.computing,
    )


def _evaluator(config: Config, arithmetic: Arithmetic, data: TrainingData) -> Evaluator | None:
    if config.evaluate.task == "none":
        return None
    path = Path(config.evaluate.path or (data.glyph_set or Path()) / "test")
    images = image_reader(config, arithmetic)
    if config.evaluate.task == "verification":
        return build_verifier(config, path, images, data.class_names)
    tell_of_overlap(config, path, None, None)
    return build_classifier(path, data.num_classes, data.class_names, images, config.evaluate.flip)


# -- by all ranks together ------------------------------------------------------------------------------


def _build_head(parts: LocalParts, embedding_dim: int, group: Group | None) -> PartialFC | LinearHead:
    head, num_classes, device = parts.config.head, parts.num_classes, parts.world.device
    if head.kind == "linear":
        losses: Any = {name: getattr(head, name) for name in ("label_smoothing", "loss", "bce_threshold")}
        return LinearHead(num_classes, embedding_dim, **losses).to(device)
    same = ("sample_rate", *(field.name for field in fields(HeadOptions)))
    settings: dict[str, Any] = {name: getattr(head, name) for name in same}
    settings |= {"margin": parts.margin, "seed": parts.config.run.seed, "device": device, "group": group}
    return PartialFC(num_classes, embedding_dim, **settings)


def _start_head(head: PartialFC | LinearHead, parts: LocalParts) -> str:
    """Take ``head.weights``; a line about the classes where they are not the same."""
    config, dataset, source = parts.config, parts.dataset, parts.config.head.weights
    start = parts.num_classes, parts.class_names, parts.backbone, source
    numbers_C, count, by_name = groups.together(lambda: load_head(head, *start))
    new, means_of = int((numbers_C < 0).sum()), None
    taken = len(numbers_C) - new
    if new and isinstance(head, PartialFC):
        if config.head.new_classes == "mean" and dataset:
            if not config.model.weights:
                raise UserError(
                    f"head.new_classes: 'mean' is of a trained backbone; set model.weights to {source} too, or 'random'"
                )
            given = parts.backbone, image_reader(config, parts.arithmetic), dataset, numbers_C
            means_of = groups.together(lambda: mean_embeddings(*given))
        with eager(parts.compiled):
            start_new_classes(head, numbers_C, means_of)
    how = "" if by_name else " in their order, for not both sides have names"
    told = f"Head of {source}: {taken:,} classes are taken{how}, {new:,} are new, {count - taken:,} are dropped"
    return told if new or taken < count or not by_name else ""


def _over_ranks(module: nn.Module, config: Config, world: World) -> nn.Module:
    """The module, its gradients averaged over the ranks."""
    return averaging(module, world.device, config.speed.bucket_mb, config.speed.gradient_compression)
