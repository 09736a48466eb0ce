"""The training loop: one for identities and for classification.

loss = head(backbone(images), labels)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megaclass import checkpoint, distributed, schedule
from megaclass.build import Job, build_job
from megaclass.checkpoint import Checkpoint, Sharded
from megaclass.config import Config
from megaclass.data.loader import Batch
from megaclass.distributed import World
from megaclass.environment import snapshot
from megaclass.errors import UserError
from megaclass.heads.partial_fc import PartialFC
from megaclass.models.norm import average_norm_buffers
from megaclass.optim import restore_optimizer
from megaclass.progress import Progress
from megaclass.rundir import RunDirectory, choose
from megaclass.runlog import RunLog
from megaclass.runtime import seed_step, use_deterministic_kernels, use_threads


@dataclass
class Outcome:
    """One step's numbers, scalar tensors on the device: reading them is up to the loop."""

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor


def fit(job: Job, log: RunLog, progress: Progress) -> None:
    """Train from ``progress.step`` to the end, evaluating and saving on the way and at the end."""
    norms = NormBuffers(job.backbone)
    counts = SkipCounter(progress, job.world.device)
    job.model.train()
    log.training_starts(progress)
    for batch in job.batches(progress.step, job.total_steps):
        rate = set_learning_rate(job, progress.step)
        outcome = train_step(job, batch, progress.step, norms)
        counts.add(outcome.skipped)
        progress.step += 1
        is_last = progress.step == job.total_steps
        # On a CPU reading costs nothing; on a GPU the two host syncs of a step come at log steps only.
        if log.is_due(progress.step) or is_last or job.world.device.type == "cpu":
            counts.read(progress, job.config.run.max_skipped)
            progress.loss = float(outcome.loss)
        log.step_done(progress, rate, outcome.grad_norm, batch.wait_ms)
        with log.clock_stopped(progress):
            if is_last or _due(progress.step, job.config.evaluate.every):
                evaluate(job, log, progress)
            if is_last or _due(progress.step, job.config.run.checkpoint_every or job.config.evaluate.every):
                save(job, log, progress)


def train_step(job: Job, batch: Batch, step: int, norms: "NormBuffers") -> Outcome:
    """Forward and backward over the micro-batches of one step, and the optimizers' steps."""
    seed_step(job.config.run.seed, step, job.world.rank)
    norms.keep()
    parts = job.config.data.accumulation
    labels = batch.labels.to(job.world.device, non_blocking=True)
    job.head.draw(labels)
    loss = torch.zeros((), device=job.world.device)
    for i, (images_b, labels_b) in enumerate(
        zip(batch.images.chunk(parts), labels.chunk(parts), strict=True)
    ):
        with job.gradients_stay_local(i < parts - 1):
            with job.arithmetic.autocast():
                embeddings = job.model(job.to_input(images_b))
            part_loss = job.scorer(embeddings.float(), labels_b) / parts
            job.scaler.scale(part_loss).backward()
        loss += part_loss.detach()
    outcome = update(job, loss)
    norms.restore_where(outcome.skipped)
    return outcome


def update(job: Job, loss: Tensor) -> Outcome:
    """Clip, and step both optimizers, unless the loss or the gradient is not finite: then neither moves.

    Loss and gradient are the same on every rank, so all decide alike.
    """
    job.scaler.unscale_(job.optimizer)
    parameters = [p for group in job.optimizer.param_groups for p in group["params"]]
    limit = job.config.optim.clip_grad_norm or float("inf")
    grad_norm = nn.utils.clip_grad_norm_(parameters, limit)
    skipped = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
    # Both optimizers step, or neither: fused ones look at found_inf on the device.
    job.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    if job.head_optimizer is not None:
        job.head_optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        if job.scaler.is_enabled():
            job.head_optimizer.grad_scale = job.scaler.scale(torch.ones((), device=loss.device))  # type: ignore[attr-defined]
        job.head_optimizer.step()
    job.optimizer.step()
    job.optimizer.zero_grad()
    job.scaler.update()
    return Outcome(loss, grad_norm, skipped)


def set_learning_rate(job: Job, step: int) -> float:
    """Give both optimizers the rate of this step; returns the backbone's."""
    plan, optim = job.config.schedule, job.config.optim
    rate = optim.lr * schedule.factor(
        plan.kind,
        step,
        job.total_steps,
        round(plan.warmup * job.total_steps),
        power=plan.power,
        milestones=plan.milestones,
        gamma=plan.gamma,
        final_factor=plan.final_factor,
    )
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    if job.head_optimizer is not None:
        job.head_optimizer.param_groups[0]["lr"] = rate * optim.head_lr_factor
    return rate


def evaluate(job: Job, log: RunLog, progress: Progress) -> None:
    if job.evaluator is None:
        return
    average_norm_buffers(job.backbone)
    progress.evaluation, progress.evaluated_at = job.evaluator(job.backbone, job.head), progress.step
    job.model.train()
    log.evaluated(progress)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


# -- steps that are not finite ------------------------------------------------------------------------


class NormBuffers:
    """Running statistics as they were before a step: a batch with a NaN would poison them for good."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [b for b in module.buffers() if b.is_floating_point()]
        self._kept = [b.clone() for b in self._buffers]

    def keep(self) -> None:
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def restore_where(self, skipped: Tensor) -> None:
        """Put them back where ``skipped`` (a bool scalar) is true, without a host sync."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            torch.where(skipped, kept, buffer, out=buffer)


class SkipCounter:
    """Counts skipped steps on the device, so that nobody waits for it."""

    def __init__(self, progress: Progress, device: torch.device) -> None:
        self._total = torch.tensor(progress.skipped_steps, device=device)
        self._in_a_row = torch.tensor(progress.skipped_in_a_row, device=device)

    def add(self, skipped: Tensor) -> None:
        self._total += skipped
        self._in_a_row = (self._in_a_row + 1) * skipped

    def read(self, progress: Progress, limit: int) -> None:
        """Bring ``progress`` up to date (a host sync). UserError at ``limit`` skipped steps in a row."""
        progress.skipped_steps, progress.skipped_in_a_row = torch.stack(
            [self._total, self._in_a_row]
        ).tolist()
        if progress.skipped_in_a_row >= limit:
            raise UserError(
                f"step {progress.step}: {progress.skipped_in_a_row} steps in a row had a non-finite loss or gradient "
                "(run.max_skipped); the last checkpoint is unharmed: lower optim.lr, or look at the data"
            )


# -- checkpoints --------------------------------------------------------------------------------------


def save(job: Job, log: RunLog, progress: Progress) -> None:
    """Write everything that a restart needs; see :mod:`megaclass.checkpoint`."""
    average_norm_buffers(job.backbone)
    state: dict[str, Any] = {
        "backbone": job.backbone.state_dict(),
        "optimizer": job.optimizer.state_dict(),
        "scaler": job.scaler.state_dict(),
        "progress": progress.state(),
    }
    sharded: dict[str, Sharded] = {}
    if job.head_optimizer is not None:
        job.head_optimizer.catch_up()
        state["head_steps"] = job.head.optimizer_steps
        sharded = {name: Sharded(rows, start, job.num_classes) for name, rows, start in _head_rows(job)}
    else:
        state["head"] = job.head.state_dict()
    path = checkpoint.save(
        log.directory.checkpoints,
        progress.step,
        state=state,
        sharded=sharded,
        identity=job.identity,
        keep_last=job.config.run.keep_last,
        metric=progress.score,
    )
    log.saved(progress, path)


def restore(job: Job, path: Path) -> Progress:
    """Put a checkpoint, written at any number of ranks, into the job."""
    stored = checkpoint.load(path, identity=job.identity)
    try:
        job.backbone.load_state_dict(stored.state["backbone"])
        restore_optimizer(job.optimizer, stored.state["optimizer"])
        if job.scaler.is_enabled() and stored.state["scaler"]:
            job.scaler.load_state_dict(stored.state["scaler"])
        if job.head_optimizer is not None:
            _restore_head(job, stored)
        else:
            job.head.load_state_dict(stored.state["head"])
        return Progress.from_state(stored.state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: not a checkpoint of this run's model ({reason}); use the configuration it was made with"
        ) from None


def _restore_head(job: Job, stored: Checkpoint) -> None:
    assert job.head_optimizer is not None
    head = job.head
    assert isinstance(head, PartialFC)
    start, stop = head.class_range
    with torch.no_grad():
        stored.rows("head/weight", start, stop, out=head.weight.data)
        stored.rows("head/momentum", start, stop, out=job.head_optimizer.momentum_buffer)
    job.head_optimizer.restored(stored.state["head_steps"])


def _head_rows(job: Job) -> Iterator[tuple[str, Tensor, int]]:
    """This rank's part of the centres and their momentum: its shard, or its share of what all ranks hold."""
    head, optimizer = job.head, job.head_optimizer
    assert isinstance(head, PartialFC) and optimizer is not None
    first, last = head.class_range
    if head.parallelism == "data":
        first, last = distributed.shard_range(job.num_classes, job.world.rank, job.world.size)
    for name, rows in (("head/weight", head.weight.detach()), ("head/momentum", optimizer.momentum_buffer)):
        yield name, rows[first - head.class_range[0] : last - head.class_range[0]], first


# -- a whole run --------------------------------------------------------------------------------------


def run(config: Config, world: World, resume: bool = False) -> tuple[RunDirectory, dict[str, Any]]:
    """Train as configured, or continue; returns the run directory and what its result.json holds."""
    directory = distributed.on_main_rank(lambda: choose(config, resume))
    threads = use_threads(config.run.threads)
    if config.run.deterministic:
        use_deterministic_kernels()
    job = distributed.together(lambda: build_job(config, world))
    latest = checkpoint.latest(directory.checkpoints) if resume else None
    progress = distributed.together(lambda: restore(job, latest)) if latest else Progress()
    if world.is_main:
        directory.prepare(config)
    with RunLog(job, directory, progress.step if resume else None) as log, job.arithmetic.active():
        log.say(_greeting(job, directory, progress, threads))
        fit(job, log, progress)
    result = _result(job, progress)
    if world.is_main:
        directory.write_result(result)
    return directory, result


def _greeting(job: Job, directory: RunDirectory, progress: Progress, threads: int) -> str:
    config = job.config
    start = f"continuing at step {progress.step}" if progress.step else "starting"
    return (
        f"{config.recipe}: {start} of {job.total_steps} steps, {job.num_classes:,} classes, "
        f"global batch {config.data.global_batch_size}, {config.model.name} in {job.arithmetic.compute}, "
        f"{job.world.size} x {job.world.device.type} ({threads} CPU threads each), into {directory.path}"
    )


def _result(job: Job, progress: Progress) -> dict[str, Any]:
    samples = progress.step * job.config.data.global_batch_size
    result: dict[str, Any] = {
        "recipe": job.config.recipe,
        "steps": progress.step,
        "samples": samples,
        "seconds": round(progress.seconds, 3),
        "samples_per_second": round(samples / progress.seconds, 3) if progress.seconds else None,
        "final_loss": progress.loss if math.isfinite(progress.loss or 0) else None,  # JSON has no NaN
        "world_size": job.world.size,
        "environment": snapshot(),
    }
    if progress.evaluation:
        result[progress.evaluation.kind] = progress.evaluation.metrics
    return result
