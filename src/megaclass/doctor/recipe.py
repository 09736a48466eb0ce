"""What a recipe asks for, held against what is there: data, memory, disk."""

import collections
import functools
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from megaclass.config import Config, Steps, steps_of
from megaclass.data.dataset import DamagedSampleError, Dataset, class_names
from megaclass.data.decode import decode
from megaclass.data.sampler import drawn
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, in_bytes, judged, look
from megaclass.doctor.memory import Memory, memory_of
from megaclass.errors import UserError
from megaclass.evaluate.evaluators import build_classifier, build_verifier
from megaclass.parallel.groups import World, pick_device
from megaclass.results.machine import available_memory
from megaclass.results.rundir import choose
from megaclass.train.arithmetic import Arithmetic, pick_arithmetic
from megaclass.train.batches import glyph_directory, training_set
from megaclass.train.job import check_batch, image_reader
from megaclass.train.log import warnings_of
from megaclass.train.model import build_model

_LIMIT_S = 60.0  # of one part: a folder of millions of images on a network disk takes long to list
_DECODED = 32  # images of the training set, drawn at random
_FULL = 0.8  # of the memory there; the rest is for activations and batches


@dataclass
class _Looked:
    """What is known of the recipe so far; a part that failed leaves what it would have found empty."""

    config: Config
    ranks: int
    device: torch.device | None = None
    arithmetic: Arithmetic | None = None
    backbone: nn.Module | None = None  # without its numbers
    dataset: Dataset | None = None
    images: int = 0
    classes: int = 0
    steps: Steps | None = None

    @property
    def local_ranks(self) -> int:
        """Of one machine: a GPU each, or on a CPU all of them."""
        if self.device is not None and self.device.type == "cuda":
            return min(self.ranks, torch.cuda.device_count())
        return min(self.ranks, int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks)))

    def memory(self, ranks: int, node_ranks: int) -> Memory:
        assert self.backbone is not None and self.arithmetic is not None
        floats = [b.numel() for b in self.backbone.buffers() if b.is_floating_point()]
        return memory_of(
            self.config,
            parameters=sum(p.numel() for p in self.backbone.parameters()),
            buffers=sum(floats),
            embedding_dim=int(self.backbone.embedding_dim),  # type: ignore[arg-type]
            classes=self.classes,
            compute=self.arithmetic.compute,
            ranks=ranks,
            node_ranks=node_ranks,
        )


def findings(config: Config, ranks: int, is_new: bool = True) -> Iterator[Finding]:
    """Look at everything that a training of ``config`` over ``ranks`` processes needs; nothing is written.

    is_new: a run that is to begin, and not one that is to go on.
    """
    looked = _Looked(config, ranks)
    for what, part in _PARTS.items():
        if is_new or part is not _output:
            yield from look(what, _LIMIT_S, functools.partial(part, looked))


def _settings(looked: _Looked) -> Iterator[Finding]:
    config = looked.config
    yield Finding(OK, "settings", f"{config.recipe or 'the defaults'}: read, and they go together")
    looked.device = pick_device(config.run.device)
    yield Finding(OK, "device", str(looked.device))


def _model(looked: _Looked) -> Iterator[Finding]:
    if looked.device is None:
        return
    config = looked.config
    # Shapes alone: names and shapes of model.weights are held against them, and nothing is allocated.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone, _ = build_model(config, torch.device("meta"))
    precision = config.precision
    looked.arithmetic = pick_arithmetic(
        precision.compute, precision.channels_last, looked.device, precision.tf32
    )
    looked.backbone = backbone
    count = sum(p.numel() for p in backbone.parameters())
    weights = f", from {config.model.weights}" if config.model.weights else ""
    yield Finding(
        OK, "model", f"{config.model.name}, {count:,} parameters in {looked.arithmetic.compute}{weights}"
    )
    check_batch(config, World(0, looked.ranks, looked.device), backbone)
    size, parts = config.data.global_batch_size, looked.ranks * config.data.accumulation
    yield Finding(
        OK, "batch", f"{size:,} images a step: {parts} x {size // parts} over ranks and micro-batches"
    )


def _data(looked: _Looked) -> Iterator[Finding]:
    config, data = looked.config, looked.config.data
    if data.source == "synthetic":
        looked.images, looked.classes = data.num_samples, data.num_classes
        yield Finding(OK, "data", f"synthetic: {looked.images:,} images, {looked.classes:,} classes")
    else:
        path = glyph_directory(config) / "train" if data.source == "glyphs" else Path(data.path)
        if data.source == "glyphs" and not path.exists():
            yield Finding(OK, "data", "glyphs: the first training renders them, in about half a minute")
            return
        looked.dataset = dataset = training_set(config, path)
        looked.images, looked.classes = len(dataset), dataset.num_classes
        yield Finding(OK, "data", f"{path}: {looked.images:,} images, {looked.classes:,} classes")
        counts_K = np.bincount(dataset.labels(), minlength=dataset.num_classes)
        few = int((counts_K < 2).sum())
        advice = "they teach little: give them more images, or leave them out"
        told = f"{few:,} with fewer than 2 images; {counts_K.min():,} to {counts_K.max():,} a class"
        yield judged("classes", told, (few > 0, WARN, advice))
        yield _decoded(config, dataset)
    looked.steps = steps_of(config, looked.images)


def _decoded(config: Config, dataset: Dataset) -> Finding:
    damaged, sizes = [], collections.Counter[str]()
    for index in drawn(len(dataset), _DECODED, "doctor", 0).tolist():
        where = dataset.describe(index)
        try:
            image_HWC = decode(dataset.read(index).encoded, where)
            sizes[f"{image_HWC.shape[1]} x {image_HWC.shape[0]}"] += 1
        except DamagedSampleError as error:
            damaged.append(str(error))
    if damaged:
        mark = WARN if config.data.on_error == "skip" else FAIL
        advice = "`megaclass data check` lists all; data.on_error skip takes others in their place"
        return Finding(mark, "images", f"{len(damaged)} of {_DECODED} damaged: {damaged[0]}", advice)
    (size, count), seen = sizes.most_common(1)[0], sum(sizes.values())
    return Finding(OK, "images", f"{seen} drawn at random decode, {count} of them {size} px")


def _evaluation(looked: _Looked) -> Iterator[Finding]:
    config, evaluate = looked.config, looked.config.evaluate
    if evaluate.task == "none":
        yield Finding(OK, "evaluation", "none")
        return
    path = Path(evaluate.path or glyph_directory(config) / "test")
    if looked.arithmetic is None or (not evaluate.path and not path.exists()):
        return  # glyphs that are to be rendered
    reader = image_reader(config, looked.arithmetic)
    if evaluate.task == "verification":
        build_verifier(config, path, reader)
    else:
        names = class_names(looked.dataset) if looked.dataset else None
        build_classifier(path, looked.classes, names, reader)
    yield Finding(OK, "evaluation", f"{evaluate.task} on {path}")


def _schedule(looked: _Looked) -> Iterator[Finding]:
    if looked.steps is None:
        return
    config, total = looked.config, looked.steps.total
    epochs = total * config.data.global_batch_size / looked.images
    yield Finding(OK, "steps", f"{total:,} of {config.data.global_batch_size:,} images, {epochs:,.2f} epochs")
    for message in warnings_of(config, looked.steps):
        found, _, advice = message.partition("; ")
        yield Finding(WARN, "settings", found, advice)


def _memory(looked: _Looked) -> Iterator[Finding]:
    if looked.backbone is None or looked.device is None or looked.steps is None:
        return
    local = looked.local_ranks
    need = looked.memory(looked.ranks, local)
    named = {
        "backbone": need.weights + need.average + need.casts,
        "optimizer and gradients": need.optimizer + need.gradients,
        "centres": need.centres + need.momentum + need.owed,
    }
    parts = ", ".join(f"{name} {in_bytes(count)}" for name, count in named.items() if count)
    if looked.device.type == "cuda":
        there = min(torch.cuda.mem_get_info(index)[0] for index in range(local))
        where = "free on the GPU"
    else:
        there, where = (
            available_memory() // local,
            f"free{f' for each of {local} ranks' if local > 1 else ''}",
        )
    advice = "more ranks, head.storage bf16 or int8_rowwise, or a smaller model"
    yield judged(
        "memory",
        f"{in_bytes(need.total)} a rank ({parts}), plus activations, of {in_bytes(there)} {where}",
        (need.total > there, FAIL, advice),
        (need.total > _FULL * there, WARN, f"little is left for activations: {advice}, or a smaller batch"),
    )


def _saving(looked: _Looked) -> Iterator[Finding]:
    if looked.backbone is None or looked.steps is None:
        return
    run, steps = looked.config.run, looked.steps
    size, every = looked.memory(1, 1).stored, steps.between_checkpoints
    often = f"every {every:,} steps" if every and every < steps.total else "at the end only"
    yield judged(
        "checkpoints",
        f"{in_bytes(size)} each, {often}",
        (often == "at the end only", WARN, "a failure loses all: set run.checkpoint_every"),
    )
    kept = run.keep_last + 1 + (steps.between_evaluations > 0)  # while one is written, and the best
    folder = existing(Path(run.output or "."))
    free = shutil.disk_usage(folder).free
    told = f"{in_bytes(free)} free for {kept} checkpoints of {in_bytes(size)} in {folder}"
    yield judged(
        "room", told, (free < kept * size, FAIL, "make room, lower run.keep_last, or name another run.output")
    )


def _output(looked: _Looked) -> Iterator[Finding]:
    path = choose(looked.config, resume=False).path
    if not os.access(existing(path), os.W_OK):
        raise UserError(f"{path} may not be written; name another run.output")
    yield Finding(OK, "output", f"{path} is new")


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(part for part in (path.absolute(), *path.absolute().parents) if part.is_dir())


_PARTS = {
    "settings": _settings,
    "model": _model,
    "data": _data,
    "evaluation": _evaluation,
    "schedule": _schedule,
    "memory": _memory,
    "checkpoints": _saving,
    "output": _output,
}
