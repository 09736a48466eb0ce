"""The training loop: one for identities and for classification.

loss = head(backbone(images), labels)
"""

import contextlib
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from megaclass import checkpoint
from megaclass.config import Config
from megaclass.data.loader import Batch
from megaclass.errors import UserError
from megaclass.evaluate.evaluators import Evaluation
from megaclass.parallel import groups
from megaclass.parallel.groups import World
from megaclass.parallel.seeding import derive_key
from megaclass.results.machine import snapshot
from megaclass.results.rundir import RunDirectory, UnwrittenResultError, choose
from megaclass.train import schedule
from megaclass.train.arithmetic import keep_freed_memory, use_deterministic_kernels, use_threads
from megaclass.train.job import Job, build_job
from megaclass.train.log import RunLog
from megaclass.train.progress import Clock, Progress
from megaclass.train.resume import agree_on_norms, restore, save


@dataclass
class Outcome:
    """One step's numbers, scalar tensors on the device: reading them is up to the loop."""

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor
    rescaled: Tensor  # skipped, but only because the fp16 loss scale is still too high


def fit(job: Job, log: RunLog, progress: Progress) -> None:
    """Train from ``progress.step`` to the end, evaluating and saving on the way and at the end."""
    norms = NormBuffers(job.backbone)
    skips = SkipCounter(progress, job.world.device)
    clock = Clock(job.world.device, progress.seconds)
    job.model.train()
    for batch in job.feed(job.loader.steps(progress.step, job.total_steps)):
        rate = set_learning_rate(job, progress.step)
        outcome = train_step(job, batch, progress.step, norms)
        skips.add(outcome)
        progress.step += 1
        tells, evaluates, saves = due(job, progress.step)
        # On a CPU reading costs nothing; on a GPU it is a host sync, so it waits for somebody who needs it.
        if tells or evaluates or saves or job.world.device.type == "cpu":
            progress.loss = float(outcome.loss)
            skips.read(progress, job.config.run.max_skipped)
        progress.seconds = clock.seconds()
        log.step_done(batch)
        if tells:
            progress.damaged_samples = len(set().union(*groups.gather_objects(job.loader.damaged)))
            log.tell(rate, outcome.grad_norm)
        if evaluates or saves:
            with clock.stopped() as progress.seconds:
                if evaluates and job.evaluator is not None:
                    began = time.perf_counter()
                    progress.evaluated(evaluate(job))
                    progress.evaluation_seconds += time.perf_counter() - began
                    log.evaluated()
                if saves:
                    log.saved(save(job, progress, log.directory.checkpoints))


def due(job: Job, step: int) -> tuple[bool, bool, bool]:
    """Whether after ``step`` steps a line is told, the model evaluated, and a checkpoint written."""
    cadences = (job.config.run.log_every, job.steps.between_evaluations, job.steps.between_checkpoints)
    tells, evaluates, saves = (
        step == job.total_steps or (every > 0 and step % every == 0) for every in cadences
    )
    return tells, evaluates, saves


def train_step(job: Job, batch: Batch, step: int, norms: "NormBuffers") -> Outcome:
    """Forward and backward over the micro-batches of one step, and the optimizers' steps."""
    # Dropout becomes a function of the step, so that a resumed run needs no stored generator state.
    torch.manual_seed(derive_key("step", job.config.run.seed, step, job.world.rank))
    norms.keep()
    parts = job.config.data.accumulation
    labels = batch.labels.to(job.world.device, non_blocking=True)
    job.head.draw(labels)
    loss = torch.zeros((), device=job.world.device)
    for i, (images_b, labels_b) in enumerate(
        zip(batch.images.chunk(parts), labels.chunk(parts), strict=True)
    ):
        images, targets = job.mix(job.to_input(images_b), labels_b, step)
        is_last = i == parts - 1
        with job.gradients_stay_local(not is_last):
            with job.arithmetic.autocast():
                embeddings = job.model(images)
            part_loss = job.scorer(embeddings.float(), targets) / parts
            loss += part_loss.detach()
            if is_last and job.overlaps_head:
                _step_head_before_gradients_arrive(job, embeddings, loss)
            job.scaler.scale(part_loss).backward()
    outcome = update(job, loss)
    norms.restore_where(outcome.skipped)
    if job.average is not None:
        job.average.update(step)
    return outcome


def update(job: Job, loss: Tensor) -> Outcome:
    """Clip, and step both optimizers, unless the loss or the gradient is not finite: then neither moves.

    Loss and gradient are the same on every rank, so all decide alike. With ``speed.overlap_head`` the head has
    moved already where the loss is finite.
    """
    job.scaler.unscale_(job.optimizer)
    parameters = [p for group in job.optimizer.param_groups for p in group["params"]]
    limit = job.config.optim.clip_grad_norm or float("inf")
    grad_norm = nn.utils.clip_grad_norm_(parameters, limit)
    loss_scale = _loss_scale(job)
    skipped = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
    # Both optimizers step, or neither: fused ones look at found_inf on the device.
    job.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    if not job.overlaps_head:
        _step_head(job, skipped, loss_scale)
    job.optimizer.step()
    job.optimizer.zero_grad()
    rescaled = skipped & torch.isfinite(loss) & (loss_scale > 1)
    job.scaler.update()
    return Outcome(loss, grad_norm, skipped, rescaled)


def _step_head_before_gradients_arrive(job: Job, embeddings: Tensor, loss: Tensor) -> None:
    """Have the head step when the backward pass that now comes is computed, while DistributedDataParallel's last
    gradients still travel: it waits for them in a callback of its own, which comes after this one."""

    def step() -> None:
        _step_head(job, ~torch.isfinite(loss), _loss_scale(job))

    queue: Any = torch.autograd.Variable._execution_engine
    embeddings.register_hook(lambda grad: queue.queue_callback(step))


def _step_head(job: Job, skipped: Tensor, loss_scale: Tensor) -> None:
    if job.head_optimizer is not None:
        job.head_optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        job.head_optimizer.grad_scale = loss_scale  # type: ignore[attr-defined]
        job.head_optimizer.step()


def _loss_scale(job: Job) -> Tensor:
    return job.scaler.scale(torch.ones((), device=job.world.device))


def set_learning_rate(job: Job, step: int) -> float:
    """Give both optimizers the rate of this step; returns the backbone's."""
    config, steps = job.config, job.steps
    rate = steps.base_lr * schedule.factor(config.schedule, step, steps.total, steps.warmup)
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    if job.head_optimizer is not None:
        job.head_optimizer.param_groups[0]["lr"] = rate * config.optim.head_lr_factor
    return rate


def evaluate(job: Job) -> Evaluation:
    """What the job's evaluator finds of the model as it is: of its averaged weights, where they are kept."""
    assert job.evaluator is not None
    agree_on_norms(job)
    with contextlib.ExitStack() as stack:
        if job.compiled != "none":  # an evaluation has other shapes, and is not worth their compilation
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if job.average is not None:
            stack.enter_context(job.average.in_place())
        found = job.evaluator(job.backbone, job.head)
    job.model.train()
    return found


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
        self._counts = torch.tensor([progress.skipped_steps, progress.skipped_in_a_row], device=device)

    def add(self, outcome: Outcome) -> None:
        self._counts += outcome.skipped
        # Finding the loss scale takes a few skipped steps by design: they end a run no more than good ones do.
        self._counts[1] *= outcome.skipped & ~outcome.rescaled

    def read(self, progress: Progress, limit: int) -> None:
        """Put the counts into ``progress`` (a host sync). UserError at ``limit`` skipped steps in a row."""
        progress.skipped_steps, progress.skipped_in_a_row = self._counts.tolist()
        if progress.skipped_in_a_row >= limit:
            raise UserError(
                f"step {progress.step}: {progress.skipped_in_a_row} steps in a row had a non-finite loss or gradient "
                "(run.max_skipped); the last checkpoint is unharmed: lower optim.lr, or look at the data"
            )


# -- a whole run --------------------------------------------------------------------------------------


def run(config: Config, world: World, resume: bool = False) -> tuple[RunDirectory, dict[str, Any]]:
    """Train as configured, or continue; returns the run directory and what its result.json holds.

    UnwrittenResultError: the run has ended well, and result.json cannot be written.
    """
    # One rank looks and tells: on a network file system another might see an older state of the directory.
    directory = groups.on_main_rank(lambda: choose(config, resume))
    latest = groups.on_main_rank(lambda: checkpoint.latest(directory.checkpoints)) if resume else None
    threads = use_threads(config.run.threads)
    if config.speed.keep_memory and world.device.type == "cpu":
        keep_freed_memory()
    if config.run.deterministic:
        use_deterministic_kernels()
    # A checkpoint brings the weights: those that the run once started from may be gone.
    weightless = {part: replace(getattr(config, part), weights="") for part in ("model", "head")}
    job = build_job(replace(config, **weightless) if latest else config, world)
    with contextlib.ExitStack() as held:
        groups.on_main_rank(lambda: held.enter_context(directory.locked()))
        progress = groups.together(lambda: restore(job, latest)) if latest else Progress()
        # First, for it is what tells a run from other people's files, whenever a kill may come.
        groups.on_main_rank(lambda: directory.write_config(config, job.class_names))
        log = groups.together(lambda: RunLog(job, directory, progress, resume))
        with log, job.arithmetic.active():
            log.say(_greeting(job, directory, progress, threads))
            if resume and not latest:
                log.say(f"No checkpoint in {directory.path} yet: starting from the beginning")
            fit(job, log, progress)
        result = _result(job, progress)
        unwritten = groups.on_main_rank(lambda: directory.write_result(result))
    if unwritten:
        raise UnwrittenResultError(unwritten, result)
    return directory, result


def _greeting(job: Job, directory: RunDirectory, progress: Progress, threads: int) -> str:
    config = job.config
    start = f"continuing at step {progress.step} of" if progress.step else "training for"
    if progress.step >= job.total_steps:
        start = f"finished already, at step {progress.step} of"
    return (
        f"{config.recipe}: {start} {job.total_steps} steps, {job.num_classes:,} classes, "
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
        "time_to_train_s": round(progress.seconds + progress.evaluation_seconds, 3),
        "final_loss": progress.loss if math.isfinite(progress.loss or 0) else None,  # JSON has no NaN
        "world_size": job.world.size,
        "environment": snapshot(),
    }
    if progress.evaluation:
        result[progress.evaluation.kind] = progress.evaluation.metrics
        result["best"] = {"step": progress.best_step, "score": progress.best_score}
    return result
