"""What of a job a checkpoint holds, and how it comes back. See :mod:`megaclass.checkpoint` for the format."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass import checkpoint
from megaclass.checkpoint import Checkpoint, Saver, Sharded, tree
from megaclass.checkpoint.reader import expecting
from megaclass.checkpoint.weights import rows_as_stored, stored_rows
from megaclass.errors import UserError
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.storage import Rows
from megaclass.models.norm import average_norm_buffers
from megaclass.parallel import groups
from megaclass.train.guard import DivergedError
from megaclass.train.job import Job
from megaclass.train.optimizer import restore_optimizer
from megaclass.train.progress import Progress


def save(job: Job, progress: Progress, saver: Saver, warn: Callable[[str], None]) -> bool:
    """Have everything that a restart needs saved; every rank calls. DivergedError where it is not finite.

    In a streak of skipped steps nothing is saved: it would take the place of a checkpoint from before. Returns whether
    a save has begun.
    """
    if progress.skipped_in_a_row and progress.step < job.total_steps:
        return False
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
        state["head_steps"] = job.head.shard.steps
        state["head_margin"] = {type(job.head.margin).__name__: job.head.margin_state}
        if progress.step == job.total_steps:
            job.head_optimizer.catch_up()
        tensors = _head_tensors(job.head)
        if (owed := job.head.shard.owed) and progress.step < job.total_steps:
            # Saved, not paid: paid now, it would be rounded otherwise than later, and a run that was saved would end
            # with other bits.
            tensors["head/touched"], state["head_owed"] = owed
        first, (start, stop) = job.head.row_range[0], job.head.grouping.across.share(len(job.head.weight))
        sharded = {name: Sharded(t[start:stop], first + start, job.head.num_rows) for name, t in tensors.items()}
        _look_at_centres(job.head, start, stop, warn)
    else:
        state["head"] = job.head.state_dict()
    _require_finite(state, sharded, job.world.device)
    warning = saver.save(progress.step, state=state, sharded=sharded, identity=job.identity, metric=progress.score)
    if warning:
        warn(warning)
    return True


def _require_finite(state: dict[str, Any], sharded: dict[str, Sharded], device: torch.device) -> None:
    """DivergedError, on all ranks, where a tensor of any holds a number that is not finite."""
    tensors = tree.flatten(state)[1] | {name: part.tensor for name, part in sharded.items()}
    floats = {name: t.detach() for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    extremes = [torch.stack(t.aminmax()).double().to(device) for t in floats.values()]  # a NaN is both
    is_finite = torch.stack(extremes).isfinite().all(dim=1).tolist()
    broken = [name for name, finite in zip(floats, is_finite, strict=True) if not finite]
    for name in filter(None, groups.gather_objects(broken[0] if broken else None)):
        raise DivergedError(f"{name} holds numbers that are not finite")


_VANISHED, _EXPLODED = 1e-4, 1e4  # centres are drawn with a norm of about 0.2


def _look_at_centres(head: PartialFC, start: int, stop: int, warn: Callable[[str], None]) -> None:
    """Tell of centres whose norm has left the range in which steps of this learning rate turn them."""
    norms_C = head.shard.centres[start:stop].norms()
    odd_C = (norms_C < _VANISHED) | (norms_C > _EXPLODED)
    first = head.row_range[0] + start + int(odd_C.int().argmax()) if len(odd_C) else 0
    found = [(count, of) for count, of in groups.gather_objects((int(odd_C.sum()), first)) if count]
    if found:
        broken = found[0][1] // head.options.sub_centres
        warn(
            f"{sum(count for count, _ in found):,} class centres have a norm below {_VANISHED:g} or above "
            f"{_EXPLODED:g}, that of class {broken} among them; lower optim.weight_decay or optim.lr"
        )


@dataclass(frozen=True)
class Found:
    """The checkpoint that a run goes on from, and what there is to tell of it."""

    path: Path | None = None
    messages: tuple[str, ...] = ()
    rate_factor: float | None = None  # of the learning rate from then on, where it is not as saved


def find(root: Path) -> Found:
    """The newest checkpoint that is whole; damaged ones are set aside. On one rank, under the lock of the run.

    UserError where all are damaged.
    """
    path, damaged = checkpoint.usable(root)
    said = [f"{other.name} is damaged and set aside: {reason}" for other, reason in damaged]
    if damaged and not path:
        raise UserError(f"{root}: {'; '.join(said)}; no other one is left: start anew, in another directory")
    return Found(path, tuple(said))


def agree_on_norms(job: Job) -> None:
    """Give every rank the mean of the running statistics of all, in the weights and in their average."""
    average_norm_buffers(job.backbone)
    if job.average is not None:
        with job.average.in_place():
            average_norm_buffers(job.backbone)


def restore(job: Job, found: Found) -> Progress:
    """Put the checkpoint, written at any number of ranks, into the job. Without one the run is at its beginning."""
    if not found.path:
        return Progress()
    path = found.path
    stored = checkpoint.load(path, identity=job.identity, verified=True)
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
        else:
            job.head.load_state_dict(state["head"])
        if job.average is not None:
            job.average.load_state_dict(state["ema"])
        progress = Progress.from_state(state["progress"])
    return replace(progress, rate_factor=found.rate_factor or progress.rate_factor)


def _restore_head(head: PartialFC, stored: Checkpoint) -> None:
    steps, table_K4 = stored.state["head_steps"], stored.state.get("head_owed")
    if type(steps) is not int or not 0 <= steps < 1 << 62:
        raise ValueError(f"head_steps is {steps!r}")
    if (rows := stored.sharded["head/weight"].shape[0]) != head.num_rows:
        raise ValueError(f"{rows:,} class centres there, {head.num_rows:,} here; see head.sub_centres")
    start, stop = head.row_range
    goes_on_owing = table_K4 is not None and head.shard.owed is not None
    read = rows_as_stored if goes_on_owing else stored_rows
    of_margin = stored.state.get("head_margin", {})  # without this margin's its numbers begin anew
    head.margin_state.copy_(of_margin.get(type(head.margin).__name__, head.margin_state))
    with torch.no_grad():
        for name, table in _head_tables(head).items():
            if name == "momentum" and "head/momentum" not in stored.sharded:  # row-wise storage kept none
                table.data.zero_()
            else:
                table.fill(start, partial(read, stored, f"head/{name}"))
        if goes_on_owing:
            head.shard.owes(steps, stored.rows("head/touched", start, stop), table_K4)
        else:
            head.shard.restored(steps)
    head.end_step()


def _head_tables(head: PartialFC) -> dict[str, Rows]:
    tables = {"weight": head.shard.centres}
    if head.shard.momentum is not None:
        tables["momentum"] = head.shard.momentum
    return tables


def _head_tensors(head: PartialFC) -> dict[str, Tensor]:
    """The centres and their momentum, of all rows of this rank."""
    tensors = {}
    for name, table in _head_tables(head).items():
        tensors[f"head/{name}"] = table.data
        if table.scale is not None:
            tensors[f"head/{name}_scale"] = table.scale
    return tensors
