"""From a configuration to the objects of a run: the one file that knows every registry."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from megaclass.checkpoint.arcface_torch import RankFiles
from megaclass.config import Config, Steps
from megaclass.data.augment import EvalTransform
from megaclass.data.feed import DeviceFeed
from megaclass.data.loader import BatchSource
from megaclass.data.mixup import Mixup
from megaclass.data.open import open_dataset
from megaclass.data.sampler import rank_slice
from megaclass.errors import UserError, lookup
from megaclass.evaluate.evaluators import Classifier, Evaluation, ImageReader, build_verifier
from megaclass.heads.linear import LinearHead
from megaclass.heads.margins import MARGINS
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.sgd import HeadSGD
from megaclass.heads.storage import Rows
from megaclass.models.norm import SynchronisedBatchNorm
from megaclass.parallel import groups
from megaclass.parallel.gradients import averaging
from megaclass.parallel.groups import Group, World
from megaclass.train.arithmetic import Arithmetic
from megaclass.train.average import WeightAverage
from megaclass.train.batches import TrainingData, training_data
from megaclass.train.compilation import capture_graphs, compile_backbone
from megaclass.train.model import build_model, input_function
from megaclass.train.optimizer import build_optimizer

Evaluator = Callable[[nn.Module, nn.Module], Evaluation]


@dataclass(kw_only=True)
class LocalParts:
    """What a rank makes for itself, without a word to the others."""

    config: Config
    world: World
    arithmetic: Arithmetic
    loader: BatchSource  # this rank's part of each step
    to_input: Callable[[Tensor], Tensor]
    epoch_samples: int
    steps: Steps
    num_classes: int
    class_names: list[str] | None  # where the data names its classes
    backbone: nn.Module
    compiled: str  # none, blocks or whole
    evaluator: Evaluator | None


@dataclass(kw_only=True)
class Job(LocalParts):
    """Everything that trains. ``model`` and ``scorer`` are backbone and head as the loop calls them: wrapped
    where their gradients are averaged over ranks."""

    feed: DeviceFeed  # brings batches to the device
    mix: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # (images, labels, step) -> images, targets
    head: PartialFC | LinearHead
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


def build_job(
    config: Config, world: World, say: Callable[[str], None] = print, head_group: Group | None = None
) -> Job:
    """Build every part of a run; every rank calls.

    Files, weights and data sets come first, without a collective, so that bad input on one rank is told on all; then
    what the ranks make together. ``say`` receives lines about work that takes a while. ``head_group``: the ranks that
    share a margin head, where that is not the world.
    """
    parts, centres = groups.together(lambda: _local_parts(config, world, say))
    backbone, optim = parts.backbone, config.optim
    head = _build_head(config, parts.num_classes, int(backbone.embedding_dim), world, head_group)  # type: ignore[arg-type]
    if centres is not None:
        groups.together(lambda: _load_centres(head, centres))
    by_gradient = {"backbone": backbone} | ({"head": head} if isinstance(head, LinearHead) else {})
    optimizer = build_optimizer(
        optim.name,
        list(by_gradient.values()),
        lr=parts.steps.base_lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        decay_norms=optim.decay_norms,
        trust=optim.trust,
    )
    head_optimizer = None
    if isinstance(head, PartialFC):
        rate = parts.steps.base_lr * optim.head_lr_factor
        head_optimizer = HeadSGD(head, rate, optim.momentum, optim.weight_decay)
    return Job(
        **vars(parts),
        feed=DeviceFeed(world.device),
        mix=Mixup(config.augment.mixup, parts.num_classes, config.run.seed),
        head=head,
        model=_averaging_gradients(backbone, config, world),
        scorer=head if isinstance(head, PartialFC) else _averaging_gradients(head, config, world),
        optimizer=optimizer,
        head_optimizer=head_optimizer,
        average=WeightAverage(by_gradient, optim.ema_decay) if optim.ema_decay else None,
        scaler=torch.amp.GradScaler(
            world.device.type,
            enabled=parts.arithmetic.needs_loss_scale,
            init_scale=config.precision.init_scale,
        ),
    )


# -- by each rank for itself: no collectives ------------------------------------------------------------


def _local_parts(
    config: Config, world: World, say: Callable[[str], None]
) -> tuple[LocalParts, RankFiles | None]:
    """What a rank makes for itself, and the files of the centres that the head starts from, if any."""
    # The model first: its errors come at once, and to make a data set may take a while.
    backbone, arithmetic = build_model(config, world.device)
    to_input = input_function(config, arithmetic)
    _check_batch(config, world, backbone)
    data = training_data(config, world, say)
    centres = None
    if config.head.weights:
        centres = _open_centres(Path(config.head.weights), data.num_classes, int(backbone.embedding_dim))  # type: ignore[arg-type]
    compiled = compile_backbone(backbone, _compilation(config), world.device)
    if config.speed.cuda_graphs:
        arithmetic = replace(arithmetic, keeps_casts=False)
        _capture(config, world, backbone, arithmetic, compiled)
    parts = LocalParts(
        config=config,
        world=world,
        arithmetic=arithmetic,
        loader=data.loader,
        to_input=to_input,
        epoch_samples=data.epoch_samples,
        steps=data.steps,
        num_classes=data.num_classes,
        class_names=data.class_names,
        backbone=backbone,
        compiled=compiled,
        evaluator=_evaluator(config, arithmetic, to_input, data),
    )
    return parts, centres


def _check_batch(config: Config, world: World, backbone: nn.Module) -> None:
    """UserError unless the global batch can be shared, and every part has statistics to normalise by (and
    pairs to mix)."""
    size, parts = config.data.global_batch_size, world.size * config.data.accumulation
    _, count = rank_slice(0, size, 0, parts)
    alone = count == 1 and not (config.model.sync_norm and world.size > 1)
    if alone and any(isinstance(m, nn.BatchNorm1d | SynchronisedBatchNorm) for m in backbone.modules()):
        raise UserError(
            f"data.global_batch_size: {size} leaves one image for each of {parts} parts (ranks times "
            f"data.accumulation), and {config.model.name} has batch norm; take {2 * parts} or more"
        )
    if config.augment.mixup and count % 2:
        raise UserError(
            f"augment.mixup: pairs of images are mixed, but data.global_batch_size {size} leaves {count} for each "
            f"of {parts} parts (ranks times data.accumulation); take a multiple of {2 * parts}"
        )


def _open_centres(path: Path, num_classes: int, embedding_dim: int) -> RankFiles:
    files = RankFiles(path, num_classes)
    if files.embedding_dim != embedding_dim:
        raise UserError(
            f"head.weights: {path} has centres of {files.embedding_dim} columns, the backbone gives {embedding_dim}"
        )
    return files


def _load_centres(head: PartialFC | LinearHead, files: RankFiles) -> None:
    """This rank's part of centres that arcface_torch trained, at any number of ranks."""
    assert isinstance(head, PartialFC)
    head.shard.centres.fill(head.class_range[0], lambda start, stop: Rows(files.centres(start, stop)))


def _compilation(config: Config) -> str:
    """``speed.compile``, of which ``auto`` leaves out what would be compiled for many sizes."""
    growing = config.data.start_size > 0
    return "none" if growing and config.speed.compile == "auto" else config.speed.compile


def _capture(
    config: Config, world: World, backbone: nn.Module, arithmetic: Arithmetic, compiled: str
) -> None:
    if world.device.type != "cuda":
        raise UserError("speed.cuda_graphs: there are none on a CPU; leave it out")
    if compiled == "whole":
        raise UserError(
            f"speed.cuda_graphs: {config.model.name} has no blocks to compile; set speed.compile to none"
        )
    size = config.data.image_size
    shape = (config.data.global_batch_size // world.size, 3, size, size)
    images = torch.zeros(shape, device=world.device).to(memory_format=arithmetic.memory_format)
    capture_graphs(backbone, images, arithmetic)


def image_reader(config: Config, arithmetic: Arithmetic, to_input: Callable[[Tensor], Tensor]) -> ImageReader:
    size = config.evaluate.image_size or config.data.image_size
    return ImageReader(
        transform=EvalTransform(size, config.evaluate.resize),
        batch_size=config.evaluate.batch_size,
        workers=config.data.workers or torch.get_num_threads(),
        device=arithmetic.device,
        to_input=to_input,
        precision=arithmetic.computing,
    )


def _evaluator(
    config: Config, arithmetic: Arithmetic, to_input: Callable[[Tensor], Tensor], data: TrainingData
) -> Evaluator | None:
    if config.evaluate.task == "none":
        return None
    path = Path(config.evaluate.path or (data.glyph_set or Path()) / "test")
    images = image_reader(config, arithmetic, to_input)
    if config.evaluate.task == "verification":
        return build_verifier(config, path, images)
    return Classifier(open_dataset(path), data.num_classes, data.class_names, images)


# -- by all ranks together ------------------------------------------------------------------------------


def _build_head(
    config: Config, num_classes: int, embedding_dim: int, world: World, group: Group | None
) -> PartialFC | LinearHead:
    head = config.head
    if head.kind == "linear":
        return LinearHead(num_classes, embedding_dim, head.label_smoothing).to(world.device)
    numbers = {"m1": head.m1, "m2": head.m2, "m3": head.m3} if head.margin == "combined" else {}
    margin = lookup(MARGINS, head.margin, "head.margin")(
        scale=head.scale, gradient=head.gradient, filter_threshold=head.filter_threshold, **numbers
    )
    return PartialFC(
        num_classes,
        embedding_dim,
        margin=margin,
        sample_rate=head.sample_rate,
        parallelism=head.parallelism,
        shard_group=head.shard_group,
        precision=head.precision,
        storage=head.storage,
        kernels=head.kernels,
        seed=config.run.seed,
        tile_mb=head.tile_mb,
        device=world.device,
        group=group,
    )


def _averaging_gradients(module: nn.Module, config: Config, world: World) -> nn.Module:
    speed = config.speed
    return averaging(module, world.device, speed.bucket_mb, speed.gradient_compression)
