"""What a recipe asks for, held against what is there: data, memory, disk."""

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
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, in_bytes, judged, look, told
from megaclass.evaluate.evaluators import build_classifier, build_verifier
from megaclass.parallel.groups import World, pick_device
from megaclass.results.machine import available_memory
from megaclass.results.rundir import choose
from megaclass.train.arithmetic import Arithmetic, pick_arithmetic
from megaclass.train.batches import glyph_directory, training_set
from megaclass.train.job import check_batch, image_reader
from megaclass.train.log import warnings_of
from megaclass.train.memory import Memory, memory_of
from megaclass.train.model import build_model

_LIMIT_S = 60.0  # of one part: a folder of millions of images on a network disk takes long to list
_DECODED = 32  # images of the training set, drawn at random
_FULL = 0.8  # of the memory there; the rest is for activations and batches


@dataclass
class _Looked:
    """What is known of the recipe so far. A part that needs what an earlier one has not found says nothing."""

    config: Config
    ranks: int
    is_new: bool
    device: torch.device | None = None
    arithmetic: Arithmetic | None = None
    backbone: nn.Module | None = None  # shapes alone
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
        return memory_of(
            self.config,
            self.backbone,
            classes=self.classes,
            compute=self.arithmetic.compute,
            ranks=ranks,
            node_ranks=node_ranks,
        )


def findings(config: Config, ranks: int, is_new: bool = True) -> Iterator[Finding]:
    """Look at everything that a training of ``config`` over ``ranks`` processes needs; nothing is written.

    is_new: a run that is to begin, and not one that is to go on.
    """
    looked = _Looked(config, ranks, is_new)
    for what, part in _PARTS.items():
        yield from look(what, _LIMIT_S, functools.partial(part, looked))


def _model(looked: _Looked) -> Iterator[Finding]:
    config = looked.config
    looked.device = pick_device(config.run.device)
    yield Finding(OK, "settings", f"{config.recipe} on {looked.device}: they go together")
    # Names and shapes of model.weights are held against the backbone's, and nothing is allocated.
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        backbone, arithmetic = build_model(config, torch.device("meta"))
    how = config.precision
    looked.arithmetic = pick_arithmetic(how.compute, arithmetic.channels_last, looked.device, how.tf32)
    looked.backbone = backbone
    count = sum(p.numel() for p in backbone.parameters())
    text = f"{config.model.name}, {count:,} parameters, {looked.arithmetic.compute}"
    yield Finding(OK, "model", f"{text}, from {config.model.weights}" if config.model.weights else text)


def _batch(looked: _Looked) -> Iterator[Finding]:
    if looked.backbone is not None and looked.device is not None:
        check_batch(looked.config, World(0, looked.ranks, looked.device), looked.backbone)
        data = looked.config.data
        at_once = data.global_batch_size // (looked.ranks * data.accumulation)
        yield Finding(
            OK, "batch", f"{data.global_batch_size:,} images a step, {at_once:,} at a time on each rank"
        )


def _data(looked: _Looked) -> Iterator[Finding]:
    data = looked.config.data
    path = glyph_directory(looked.config) / "train" if data.source == "glyphs" else Path(data.path)
    if data.source == "synthetic":
        path, looked.images, looked.classes = Path("synthetic"), data.num_samples, data.num_classes
    elif data.source == "glyphs" and not path.exists():
        yield Finding(OK, "data", "glyphs: the first training renders them, in about half a minute")
        return
    else:
        looked.dataset = training_set(looked.config, path)
        looked.images, looked.classes = len(looked.dataset), looked.dataset.num_classes
    looked.steps = steps_of(looked.config, looked.images)
    yield Finding(OK, "data", f"{path}: {looked.images:,} images, {looked.classes:,} classes")


def _images(looked: _Looked) -> Iterator[Finding]:
    if (dataset := looked.dataset) is None:
        return
    damaged, indices = [], drawn(len(dataset), _DECODED, "doctor", 0).tolist()
    for index in indices:
        try:
            decode(dataset.read(index).encoded, dataset.describe(index))
        except DamagedSampleError as error:
            damaged.append(str(error))
    text = f"{len(indices)} drawn at random, {len(indices) - len(damaged)} of them can be decoded"
    mark = WARN if looked.config.data.on_error == "skip" else FAIL
    fault = bool(damaged), mark, f"{''.join(damaged[:1])}; `megaclass data check` lists all"
    yield judged("images", text, fault)
    counts_K = np.bincount(dataset.labels(), minlength=dataset.num_classes)
    few, text = int((counts_K < 2).sum()), f"{counts_K.min():,} to {counts_K.max():,} images each"
    advice = f"{few:,} have fewer than 2, which teach little: add images, or leave them out"
    yield judged("classes", text, (few > 0, WARN, advice))


def _evaluation(looked: _Looked) -> Iterator[Finding]:
    config, task = looked.config, looked.config.evaluate.task
    path = Path(config.evaluate.path or glyph_directory(config) / "test")
    if task == "none":
        yield Finding(OK, "evaluation", "none")
    elif looked.arithmetic is not None and (config.evaluate.path or path.exists()):
        reader = image_reader(config, looked.arithmetic)
        if task == "verification":
            build_verifier(config, path, reader)
        else:
            names = class_names(looked.dataset) if looked.dataset else None
            build_classifier(path, looked.classes, names, reader)
        yield Finding(OK, "evaluation", f"{task} on {path}")


def _schedule(looked: _Looked) -> Iterator[Finding]:
    if looked.steps is None:
        return
    total, size = looked.steps.total, looked.config.data.global_batch_size
    yield Finding(OK, "steps", f"{total:,} of {size:,} images, {total * size / looked.images:,.2f} epochs")
    for message in warnings_of(looked.config, looked.steps):
        yield told(WARN, "settings", message)


def _memory(looked: _Looked) -> Iterator[Finding]:
    if looked.backbone is None or looked.device is None or looked.steps is None:
        return
    on_gpu, local = looked.device.type == "cuda", looked.local_ranks
    need = looked.memory(looked.ranks, local)
    backbone, optimizer = need.weights + need.average + need.casts, need.optimizer + need.gradients
    parts = f"backbone {in_bytes(backbone)}, optimizer and gradients {in_bytes(optimizer)}"
    if centres := need.centres + need.momentum + need.owed:
        parts += f", centres {in_bytes(centres)}"
    host = available_memory() // local
    free = min(torch.cuda.mem_get_info(n)[0] for n in range(local)) if on_gpu else host
    advice = "take more ranks, head.storage bf16 or int8_rowwise, or a smaller model"
    yield judged(
        "memory",
        f"{in_bytes(need.total)} a rank ({parts}) plus activations, of {in_bytes(free)} free for it",
        (need.total > free, FAIL, advice),
        (need.total > _FULL * free, WARN, f"little is left for activations: a smaller batch, or {advice}"),
    )
    copy, left = need.stored, host if on_gpu else max(0, host - need.total)
    if looked.config.run.async_save:
        text = f"{in_bytes(copy)} for a copy while a checkpoint is written, of {in_bytes(left)} left"
        yield judged("host memory", text, (copy > left, WARN, "training waits for each checkpoint meanwhile"))


def _saving(looked: _Looked) -> Iterator[Finding]:
    if looked.backbone is None or looked.steps is None:
        return
    run, steps = looked.config.run, looked.steps
    size, every = looked.memory(1, 1).stored, steps.between_checkpoints
    often = [f"every {every:,} steps"] * (0 < every < steps.total)
    often += [f"every {run.checkpoint_minutes:g} minutes"] * (run.checkpoint_minutes > 0)
    yield Finding(OK, "checkpoints", f"{in_bytes(size)} each, {', '.join([*often, 'at the end'])}")
    # The last ones, one that is being written, the best, and those that stay for good.
    kept = run.keep_last + 1 + (steps.between_evaluations > 0)
    kept += steps.total // run.keep_every if run.keep_every else 0
    folder = existing(Path(run.output or "."))
    free = shutil.disk_usage(folder).free
    text = f"{in_bytes(kept * size)} for {kept} checkpoints, of {in_bytes(free)} free in {folder}"
    advice = "make room, lower run.keep_last, or name another run.output"
    yield judged("room", text, (free < kept * size, FAIL, advice))


def _output(looked: _Looked) -> Iterator[Finding]:
    if looked.is_new:
        path = choose(looked.config, resume=False).path
        fault = (
            not os.access(existing(path), os.W_OK),
            FAIL,
            "nobody may write there: name another run.output",
        )
        yield judged("output", f"{path}, a new run", fault)


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(part for part in (path.absolute(), *path.absolute().parents) if part.is_dir())


_PARTS = {
    "model": _model,
    "batch": _batch,
    "data": _data,
    "images": _images,
    "evaluation": _evaluation,
    "schedule": _schedule,
    "memory": _memory,
    "checkpoints": _saving,
    "output": _output,
}
