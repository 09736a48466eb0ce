"""What a recipe asks for, held against what is there: data, memory, disk."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from megaclass.config import Config
from megaclass.data.dataset import DamagedSampleError, Dataset
from megaclass.data.decode import decode
from megaclass.data.sampler import drawn
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, in_bytes, judged, look, told
from megaclass.parallel.groups import World, pick_device
from megaclass.results.machine import available_memory
from megaclass.results.rundir import choose
from megaclass.train.batches import glyph_directory, training_set
from megaclass.train.job import LocalParts, local_parts
from megaclass.train.log import warnings_of
from megaclass.train.memory import Memory, memory_of

_LIMIT_S = 60.0  # of one part: a folder of millions of images on a network disk takes long to list
_DECODED = 32  # images of the training set, drawn at random
_FULL = 0.8  # of the memory there; the rest is for activations and batches


def findings(config: Config, ranks: int, is_new: bool = True) -> Iterator[Finding]:
    """Look at everything that a training of ``config`` over ``ranks`` processes needs; nothing is written.

    is_new: a run that is to begin, and not one that is to go on.
    """
    data = config.data
    if data.source == "glyphs" and not glyph_directory(config).exists():
        yield Finding(OK, "data", "glyphs: the first training renders them, in about half a minute")
        return
    parts: list[LocalParts] = []

    def start() -> Iterator[Finding]:
        """As a rank does, up to where it would meet the others: what is wrong is told as it would be there."""
        parts.append(local_parts(config, World(0, ranks, pick_device(config.run.device))))
        yield from _started(parts[0], ranks)

    yield from look("settings", _LIMIT_S, start)
    if not parts:
        return
    yield from look("memory", _LIMIT_S, lambda: _memory(parts[0], ranks))
    yield from look("checkpoints", _LIMIT_S, lambda: _saving(parts[0]))
    if data.source != "synthetic":
        path = glyph_directory(config) / "train" if data.source == "glyphs" else Path(data.path)
        yield from look("images", _LIMIT_S, lambda: _images(training_set(config, path), data.on_error))
    if is_new:
        yield from look("output", _LIMIT_S, lambda: _output(config))


def _started(parts: LocalParts, ranks: int) -> Iterator[Finding]:
    config, total, size = parts.config, parts.steps.total, parts.config.data.global_batch_size
    count = sum(p.numel() for p in parts.backbone.parameters())
    text = f"{config.model.name}, {count:,} parameters, {parts.arithmetic.compute} on {parts.world.device}"
    yield Finding(OK, "model", f"{text}, from {config.model.weights}" if config.model.weights else text)
    where = config.data.path or config.data.source
    yield Finding(OK, "data", f"{where}: {parts.epoch_samples:,} images, {parts.num_classes:,} classes")
    at_once = size // (ranks * config.data.accumulation)
    epochs = total * size / parts.epoch_samples
    text = f"{total:,} of {size:,} images, {at_once:,} at a time on each rank; {epochs:,.2f} epochs"
    yield Finding(OK, "steps", text)
    yield Finding(OK, "evaluation", config.evaluate.task)
    for message in warnings_of(config, parts.steps):
        yield told(WARN, "settings", message)


def _images(dataset: Dataset, on_error: str) -> Iterator[Finding]:
    damaged, indices = [], drawn(len(dataset), _DECODED, "doctor", 0).tolist()
    for index in indices:
        try:
            decode(dataset.read(index).encoded, dataset.describe(index))
        except DamagedSampleError as error:
            damaged.append(str(error))
    text = f"{len(indices)} drawn at random, {len(indices) - len(damaged)} of them can be decoded"
    fault = f"{''.join(damaged[:1])}; `megaclass data check` lists all"
    yield judged("images", text, (bool(damaged), WARN if on_error == "skip" else FAIL, fault))
    counts_K = np.bincount(dataset.labels(), minlength=dataset.num_classes)
    few, text = int((counts_K < 2).sum()), f"{counts_K.min():,} to {counts_K.max():,} images each"
    advice = f"{few:,} have fewer than 2, which teach little: add images, or leave them out"
    yield judged("classes", text, (few > 0, WARN, advice))


def _need(parts: LocalParts, ranks: int, local: int) -> Memory:
    classes, compute = parts.num_classes, parts.arithmetic.compute
    return memory_of(
        parts.config, parts.backbone, classes=classes, compute=compute, ranks=ranks, node_ranks=local
    )


def _memory(parts: LocalParts, ranks: int) -> Iterator[Finding]:
    config, on_gpu = parts.config, parts.world.device.type == "cuda"
    # Of one machine: a GPU each, or on a CPU all of them.
    on_cpu = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    local = min(ranks, torch.cuda.device_count() if on_gpu else on_cpu)
    need = _need(parts, ranks, local)
    backbone, optimizer = need.weights + need.average + need.casts, need.optimizer + need.gradients
    text = f"backbone {in_bytes(backbone)}, optimizer and gradients {in_bytes(optimizer)}"
    if centres := need.centres + need.momentum + need.owed:
        text += f", centres {in_bytes(centres)}"
    host = available_memory() // local
    free = min(torch.cuda.mem_get_info(n)[0] for n in range(local)) if on_gpu else host
    advice = "take more ranks, head.storage bf16 or int8_rowwise, or a smaller model"
    yield judged(
        "memory",
        f"{in_bytes(need.total)} a rank ({text}) plus activations, of {in_bytes(free)} free for it",
        (need.total > free, FAIL, advice),
        (need.total > _FULL * free, WARN, f"little is left for activations: a smaller batch, or {advice}"),
    )
    left = host if on_gpu else max(0, host - need.total)
    if config.run.async_save:
        text = f"{in_bytes(need.stored)} for a copy while a checkpoint is written, of {in_bytes(left)} left"
        yield judged(
            "host memory", text, (need.stored > left, WARN, "training waits for each checkpoint meanwhile")
        )


def _saving(parts: LocalParts) -> Iterator[Finding]:
    run, steps = parts.config.run, parts.steps
    size, every = _need(parts, 1, 1).stored, steps.between_checkpoints
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


def _output(config: Config) -> Iterator[Finding]:
    path = choose(config, resume=False).path
    fault = not os.access(existing(path), os.W_OK), FAIL, "nobody may write there: name another run.output"
    yield judged("output", f"{path}, a new run", fault)


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(part for part in (path.absolute(), *path.absolute().parents) if part.is_dir())
