"""What of a job a checkpoint holds, and how it comes back. See :mod:`megaclass.checkpoint` for the format."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass import checkpoint
from megaclass.checkpoint import Checkpoint, Sharded
from megaclass.checkpoint.reader import expecting
from megaclass.errors import UserError
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.storage import Rows
from megaclass.models.norm import average_norm_buffers
from megaclass.train.job import Job
from megaclass.train.optimizer import restore_optimizer
from megaclass.train.progress import Progress


def save(job: Job, progress: Progress, root: Path) -> Path:
    """Write everything that a restart needs under ``root``; every rank calls. Returns the checkpoint."""
    agree_on_norms(job)
    state: dict[str, Any] = {
        "backbone": job.backbone.state_dict(),
        "optimizer": job.optimizer.state_dict(),
        "scaler": job.scaler.state_dict(),
        "progress": asdict(progress),
    }
    if job.average is not None:
        state["ema"] = job.average.state_dict()
    sharded: dict[str, Sharded] = {}
    if isinstance(job.head, PartialFC):
        assert job.head_optimizer is not None
        job.head_optimizer.catch_up()
        state["head_steps"] = job.head.shard.steps
        sharded = {name: Sharded(rows, start, job.num_classes) for name, rows, start in _head_rows(job.head)}
    else:
        state["head"] = job.head.state_dict()
    return checkpoint.save(
        root,
        progress.step,
        state=state,
        sharded=sharded,
        identity=job.identity,
        keep_last=job.config.run.keep_last,
        metric=progress.score,
    )


def agree_on_norms(job: Job) -> None:
    """Give every rank the mean of the running statistics of all, in the weights and in their average."""
    average_norm_buffers(job.backbone)
    if job.average is not None:
        with job.average.in_place():
            average_norm_buffers(job.backbone)


def restore(job: Job, path: Path) -> Progress:
    """Put a checkpoint, written at any number of ranks, into the job."""
    stored = checkpoint.load(path, identity=job.identity)
    state = stored.state
    if job.average is not None and "ema" not in state:
        raise UserError(
            f"{path}: optim.ema_decay: the run has kept no average of its weights; leave it 0, or start a new run"
        )
    with expecting(f"{path}: not a checkpoint of this run's model; use the configuration it was made with"):
        job.backbone.load_state_dict(state["backbone"])
        restore_optimizer(job.optimizer, state["optimizer"])
        if job.scaler.is_enabled() and state["scaler"]:
            job.scaler.load_state_dict(state["scaler"])
        if isinstance(job.head, PartialFC):
            assert job.head_optimizer is not None
            _restore_head(job.head, stored)
            job.head_optimizer.restored(state["head_steps"])
        else:
            job.head.load_state_dict(state["head"])
        if job.average is not None:
            job.average.load_state_dict(state["ema"])
        return Progress.from_state(state["progress"])


def _restore_head(head: PartialFC, stored: Checkpoint) -> None:
    steps = stored.state["head_steps"]
    if type(steps) is not int or not 0 <= steps < 1 << 62:
        raise ValueError(f"head_steps is {steps!r}")
    start, stop = head.class_range
    with torch.no_grad():
        for name, table in _head_tables(head).items():
            if name == "momentum" and "head/momentum" not in stored.sharded:  # row-wise storage kept none
                table.data.zero_()
            else:
                _restore_rows(stored, f"head/{name}", start, stop, table)


def _restore_rows(stored: Checkpoint, name: str, start: int, stop: int, table: Rows) -> None:
    """Rows as they were stored where the storage is the same, else converted block by block."""
    entry = stored.sharded.get(name)
    if entry is None or entry.dtype == table.data.dtype:
        stored.rows(name, start, stop, out=table.data)
        if table.scale is not None:
            stored.rows(f"{name}_scale", start, stop, out=table.scale)
        return
    table.fill(start, lambda first, last: stored_rows(stored, name, first, last))


def stored_rows(stored: Checkpoint, name: str, start: int, stop: int) -> Rows:
    """Rows ``[start, stop)`` of a head's table (``head/weight``) as a checkpoint has them, in any storage."""
    scaled = stored.sharded[name].dtype == torch.int8
    scale_N = stored.rows(f"{name}_scale", start, stop) if scaled else None
    return Rows(stored.rows(name, start, stop), scale_N)


def _head_tables(head: PartialFC) -> dict[str, Rows]:
    tables = {"weight": head.shard.centres}
    if head.shard.momentum is not None:
        tables["momentum"] = head.shard.momentum
    return tables


def _head_rows(head: PartialFC) -> Iterator[tuple[str, Tensor, int]]:
    """This rank's part of the centres and their momentum: its shard, or its share of one that others hold as well."""
    first_class, replicas = head.class_range[0], head.grouping.across
    for name, table in _head_tables(head).items():
        start, stop = replicas.share(len(table))
        part = table[start:stop]
        yield f"head/{name}", part.data, first_class + start
        if part.scale is not None:
            yield f"head/{name}_scale", part.scale, first_class + start
