"""What a recipe asks for, held against what is there: data, memory, disk."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from megaclass.config import Config
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, judged, look, told
from megaclass.errors import in_bytes
from megaclass.parallel.groups import World, pick_device
from megaclass.plan.choose import largest_parts
from megaclass.plan.memory import memory_of
from megaclass.results.machine import available_memory
from megaclass.train.batches import glyph_directory
from megaclass.train.foresight import planned_job
from megaclass.train.job import LocalParts, local_parts
from megaclass.train.log import warnings_of

_LIMIT_S = 300.0  # a folder of millions of images on a network disk takes long to list


def findings(config: Config, ranks: int) -> Iterator[Finding]:
    """Look at everything that a training of ``config`` over ``ranks`` processes needs; nothing is written but
    copies of sets in stores, into the cache.

    It starts as a rank does, up to where it would meet the others: what is wrong is told as it would be there.
    """
    if config.data.source == "glyphs" and not glyph_directory(config).exists():
        yield Finding(OK, "data", "glyphs: the first training renders them, in about half a minute")
        return

    def start() -> Iterator[Finding]:
        parts = local_parts(config, World(0, ranks, pick_device(config.run.device)))
        yield from _parts(parts)
        yield _memory(parts, ranks)
        yield _room(parts)

    yield from look("settings", _LIMIT_S, start)


def _parts(parts: LocalParts) -> Iterator[Finding]:
    config, total, size = parts.config, parts.steps.total, parts.config.data.global_batch_size
    count = sum(p.numel() for p in parts.backbone.parameters())
    text = f"{config.model.name}, {count:,} parameters, {parts.arithmetic.compute} on {parts.world.device}"
    yield Finding(OK, "model", text)
    where = config.data.path or config.data.source
    yield Finding(OK, "data", f"{where}: {parts.epoch_samples:,} images, {parts.num_classes:,} classes")
    epochs = total * size / parts.epoch_samples
    yield Finding(OK, "steps", f"{total:,} of {size:,} images; {epochs:,.2f} epochs")
    for message in warnings_of(config, parts.steps):
        yield told(WARN, "settings", message)


def _memory(parts: LocalParts, ranks: int) -> Finding:
    on_gpu = parts.world.device.type == "cuda"
    # Of one machine: a GPU each, or on a CPU all of them.
    local = min(ranks, torch.cuda.device_count()) if on_gpu else ranks
    job = replace(planned_job(parts.config, parts.world, parts.num_classes), node_ranks=local)
    needed = memory_of(job)
    free = torch.cuda.mem_get_info()[0] if on_gpu else available_memory() // local
    return judged(
        "memory",
        f"{in_bytes(needed.total)} a rank ({largest_parts(needed)}), of {in_bytes(free)} free for it",
        (needed.least(job.kind) > free, FAIL, "`megaclass plan` says what fits"),
        (needed.total > free, WARN, "it may not fit; `megaclass plan` says what does"),
    )


def _room(parts: LocalParts) -> Finding:
    run, steps = parts.config.run, parts.steps
    alone = planned_job(parts.config, replace(parts.world, size=1), parts.num_classes)
    size = memory_of(alone).stored
    # The last ones, one that is being written, the best, and those that stay for good.
    kept = run.keep_last + 1 + (steps.between_evaluations > 0)
    kept += steps.total // run.keep_every if run.keep_every else 0
    folder = existing(Path(run.output or "."))
    free = shutil.disk_usage(folder).free
    text = f"{in_bytes(kept * size)} for {kept} checkpoints, of {in_bytes(free)} free in {folder}"
    advice = "make room, lower run.keep_last, or name another run.output"
    return judged("room", text, (free < kept * size, FAIL, advice))


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(part for part in (path.absolute(), *path.absolute().parents) if part.is_dir())
