"""From a configuration to the objects of a run: the one file that knows every registry."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from megaclass.checkpoint import arcface_torch
from megaclass.config import Config, Steps, steps_of
from megaclass.data import glyphs
from megaclass.data.augment import EvalTransform
from megaclass.data.dataset import Dataset, class_names
from megaclass.data.feed import DeviceFeed
from megaclass.data.loader import BatchSource
from megaclass.data.mixup import Mixup
from megaclass.data.open import open_dataset
from megaclass.data.rotated_classes import OrientedClasses
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
from megaclass.train.batches import synthetic_loader, training_loader
from megaclass.train.compilation import capture_graphs, compile_backbone
from megaclass.train.model import build_model, input_function
from megaclass.train.optimizer import build_optimizer

Evaluator = Callable[[nn.Module, nn.Module], Evaluation]


@dataclass
class Job:
    """Everything that trains. ``model`` and ``scorer`` are backbone and head as the loop calls them: wrapped
    where their gradients are averaged over ranks."""

    config: Config
    world: World
    arithmetic: Arithmetic
    loader: BatchSource  # this rank's part of each step
    feed: DeviceFeed  # brings batches to the device
    to_input: Callable[[Tensor], Tensor]
    mix: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # (images, labels, step) -> images, targets
    epoch_samples: int
    steps: Steps
    num_classes: int
    class_names: list[str] | None  # where the data names its classes
    backbone: nn.Module
    head: PartialFC | LinearHead
    model: nn.Module
    scorer: nn.Module
    compiled: str  # none, blocks or whole
    optimizer: torch.optim.Optimizer
    head_optimizer: HeadSGD | None
    average: WeightAverage | None  # of the weights, where the configuration wants one
    scaler: torch.amp.GradScaler
    evaluator: Evaluator | None

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
    """Build every part of a run. ``say`` receives lines about work that takes a while. ``head_group``: the ranks that
    share a margin head, where that is not the world."""
    # Before data sets are made or opened, so that its errors come at once.
    backbone, arithmetic = build_model(config, world.device)
    to_input = input_function(config, arithmetic)
    _check_batch(config, world, backbone)
    glyph_set = _glyph_set(config, say) if config.data.source == "glyphs" else None

    if config.data.source == "synthetic":
        num_classes, epoch_samples = config.data.num_classes, config.data.num_samples
        steps = steps_of(config, epoch_samples)
        loader: BatchSource = synthetic_loader(config, world, steps.total)
        names = None
    else:
        dataset = _training_set(config, glyph_set)
        num_classes, epoch_samples = dataset.num_classes, len(dataset)
        steps = steps_of(config, epoch_samples)
        loader = training_loader(config, world, dataset, steps.total)
        names = class_names(dataset)

    head = _build_head(config, num_classes, int(backbone.embedding_dim), world, head_group)  # type: ignore[arg-type]
    optim = config.optim
    by_gradient = [backbone] if isinstance(head, PartialFC) else [backbone, head]
    optimizer = build_optimizer(
        optim.name,
        by_gradient,
        lr=steps.base_lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        decay_norms=optim.decay_norms,
        trust=optim.trust,
    )
    head_optimizer = None
    if isinstance(head, PartialFC):
        rate = steps.base_lr * optim.head_lr_factor
        head_optimizer = HeadSGD(head, rate, optim.momentum, optim.weight_decay)
    average = None
    if optim.ema_decay:
        parts = {"backbone": backbone} | ({"head": head} if isinstance(head, LinearHead) else {})
        average = WeightAverage(parts, optim.ema_decay)
    compiled = compile_backbone(backbone, _compilation(config), world.device)
    if config.speed.cuda_graphs:
        arithmetic = replace(arithmetic, keeps_casts=False)
        _capture(config, world, backbone, arithmetic, compiled)
    return Job(
        config=config,
        world=world,
        arithmetic=arithmetic,
        loader=loader,
        feed=DeviceFeed(world.device),
        to_input=to_input,
        mix=Mixup(config.augment.mixup, num_classes, config.run.seed),
        epoch_samples=epoch_samples,
        steps=steps,
        num_classes=num_classes,
        class_names=names,
        backbone=backbone,
        head=head,
        model=_averaging_gradients(backbone, config, world),
        scorer=head if isinstance(head, PartialFC) else _averaging_gradients(head, config, world),
        compiled=compiled,
        optimizer=optimizer,
        head_optimizer=head_optimizer,
        average=average,
        scaler=torch.amp.GradScaler(
            world.device.type, enabled=arithmetic.needs_loss_scale, init_scale=config.precision.init_scale
        ),
        evaluator=_evaluator(config, arithmetic, to_input, num_classes, names, glyph_set),
    )


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


# -- data ---------------------------------------------------------------------------------------------


def cache_directory() -> Path:
    """Where data sets made by megaclass itself lie: ``$MEGACLASS_CACHE``, else the user's cache."""
    named = os.environ.get("MEGACLASS_CACHE")
    return (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "megaclass"
    )


def _glyph_set(config: Config, say: Callable[[str], None]) -> Path:
    """Render the glyphs where they are missing: the main rank does, the others wait."""
    size, held_out = config.data.image_size, config.data.held_out
    directory = (
        Path(config.data.path) if config.data.path else cache_directory() / f"glyphs-{size}px-{held_out}"
    )

    def render() -> None:
        if not directory.exists():
            say(f"Rendering the glyph data set into {directory} (once, about half a minute)")
        glyphs.ensure(directory, image_size=size, held_out=held_out)

    groups.on_main_rank(render)
    return directory


def _training_set(config: Config, glyph_set: Path | None) -> Dataset:
    path = glyph_set / "train" if glyph_set else Path(config.data.path)
    try:
        dataset = open_dataset(path)
    except UserError as error:
        raise UserError(f"data.path: {error}") from None
    wanted = config.data.num_classes
    if wanted and wanted != dataset.num_classes:
        raise UserError(
            f"data.num_classes: {wanted}, but {path} has {dataset.num_classes} classes; "
            "leave it 0 to take the data's"
        )
    if config.data.orientations > 1:
        return OrientedClasses(dataset, config.data.orientations)
    return dataset


# -- models -------------------------------------------------------------------------------------------


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
    margin_head = PartialFC(
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
    if head.weights:
        groups.together(lambda: _load_centres(margin_head, Path(head.weights)))
    return margin_head


def _load_centres(head: PartialFC, path: Path) -> None:
    """This rank's part of centres that arcface_torch trained, at any number of ranks."""
    files = arcface_torch.RankFiles(path, head.num_classes)
    if files.embedding_dim != head.embedding_dim:
        raise UserError(
            f"head.weights: {path} has centres of {files.embedding_dim} columns, the backbone gives "
            f"{head.embedding_dim}"
        )
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


def _averaging_gradients(module: nn.Module, config: Config, world: World) -> nn.Module:
    speed = config.speed
    return averaging(module, world.device, speed.bucket_mb, speed.gradient_compression)


# -- evaluation ---------------------------------------------------------------------------------------


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
    config: Config,
    arithmetic: Arithmetic,
    to_input: Callable[[Tensor], Tensor],
    num_classes: int,
    names: list[str] | None,
    glyph_set: Path | None,
) -> Evaluator | None:
    if config.evaluate.task == "none":
        return None
    path = Path(config.evaluate.path) if config.evaluate.path or glyph_set is None else glyph_set / "test"
    images = image_reader(config, arithmetic, to_input)
    if config.evaluate.task == "verification":
        return build_verifier(config, path, images)
    return Classifier(open_dataset(path), num_classes, names, images)
