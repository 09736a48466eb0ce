"""The training loop: one for identities and for classification.

loss = head(backbone(images), labels)
"""

import contextlib
import math
import signal
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from megaclass.checkpoint import Saved, Saver, best
from megaclass.config import Config, differences, load_recipe
from megaclass.data.loader import Batch
from megaclass.errors import Interrupted, UserError
from megaclass.evaluation.evaluators import Evaluation
from megaclass.parallel import groups
from megaclass.parallel.groups import World
from megaclass.parallel.seeding import derive_key
from megaclass.parallel.vote import Vote
from megaclass.results.machine import snapshot
from megaclass.results.rundir import RunDirectory, UnwrittenError, choose
from megaclass.train import schedule
from megaclass.train.arithmetic import keep_freed_memory, use_deterministic_kernels, use_threads
from megaclass.train.foresight import foresight
from megaclass.train.guard import DivergedError, Guard, Outcome
from megaclass.train.interruption import SIGNALS, Interruption
from megaclass.train.job import Job, build_job
from megaclass.train.log import RunLog
from megaclass.train.model import eager
from megaclass.train.progress import Clock, Progress
from megaclass.train.resume import Found, agree_on_norms, find, restore, save


def fit(job: Job, log: RunLog, progress: Progress, saver: Saver, interruption: Interruption) -> Saved | None:
    """Train from ``progress.step`` to the end, evaluating and saving on the way and at the end. Returns the last save.

    Raises Interrupted after a signal, when that is saved, and DivergedError.
    """
    last, ends_by = None, None
    guard, clock = Guard(job, progress), Clock(job.world.device, progress.seconds)
    votes, save_timer = Vote(), SaveTimer(job.config.run.checkpoint_minutes)
    job.model.train()
    interruption.wait_for_step()
    # A signal may have come before it.
    if progress.step > max(0, progress.evaluated_at) and due(job, progress.step).evaluates:
        evaluate(job, progress, log, clock)
    for batch in job.feed(job.loader.steps(progress.step, job.total_steps)):
        rate = set_learning_rate(job, progress.step, progress.rate_factor)
        outcome = train_step(job, batch, progress.step, guard)
        progress.step += 1
        now = due(job, progress.step, votes.cast(_wishes(job, save_timer, interruption)))
        # On a CPU reading costs nothing; on a GPU it is a host sync, so it waits for somebody who needs it.
        if now.tells or now.evaluates or now.saves or job.world.device.type == "cpu":
            progress.loss = float(outcome.loss)
            log.suspect(guard.read(progress))
            guard.check(progress, at_end=progress.step == job.total_steps)
        progress.seconds = clock.seconds()
        log.step_done(batch)
        if now.tells:
            progress.damaged_samples = len(set().union(*groups.gather_objects(job.loader.damaged)))
            log.tell(rate, outcome.grad_norm)
        if now.evaluates:
            evaluate(job, progress, log, clock)
        if now.saves:
            with clock.stopped() as progress.seconds:
                begun = save(job, progress, saver, log.warn)
            save_timer.restart(at_once=not begun)
        if saved := saver.done():
            log.saved(last := saved)
        if ends_by := now.ends_by:
            interruption.end_by(ends_by)
            break
    votes.wait()
    if saved := saver.wait():
        log.saved(last := saved)
    if ends_by:
        groups.barrier()  # leave together: a rank that tears its connections down can take the others along
        raise Interrupted(ends_by, _kept(progress, last))
    return last


@dataclass(frozen=True)
class Due:
    """What comes after a step: a line, an evaluation, a checkpoint, and the end by a signal."""

    tells: bool
    evaluates: bool
    saves: bool
    ends_by: signal.Signals | None


_SAVE = 1 << 30  # as a wish, beside one bit for each signal


def _wishes(job: Job, save_timer: "SaveTimer", interruption: Interruption) -> int:
    """What this rank wants to happen after the step, for all ranks to agree on."""
    wish = _SAVE if job.world.is_main and save_timer.asks() else 0
    return wish | (1 << interruption.signal if interruption.signal else 0)


def due(job: Job, step: int, wishes: int = 0) -> Due:
    """What comes after ``step`` steps, with what the ranks wished for."""
    at_end = step == job.total_steps
    signals = [] if at_end else [number for number in SIGNALS if wishes & (1 << number)]
    cadences = (job.config.run.log_every, job.steps.between_evaluations, job.steps.between_checkpoints)
    tells, evaluates, saves = (at_end or (every > 0 and step % every == 0) for every in cadences)
    evaluates = evaluates and job.evaluator is not None and not signals
    return Due(tells, evaluates, saves or bool(wishes), signals[0] if signals else None)


class SaveTimer:
    """Asks for a checkpoint, once, when the last one is so many minutes old; 0: never."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes if minutes else math.inf
        self.restart()

    def restart(self, at_once: bool = False) -> None:
        """After a save; ``at_once`` asks for the next one after the next step, for none was made."""
        self._due_s = time.monotonic() + (0 if at_once and self._seconds < math.inf else self._seconds)

    def asks(self) -> bool:
        if time.monotonic() < self._due_s:
            return False
        self._due_s = math.inf
        return True


def _kept(progress: Progress, last: Saved | None) -> str:
    why: str | None = "steps that are not finite are not saved"
    if last and last.step == progress.step:
        why = last.error
    if not why:
        return f"after step {progress.step}, which is saved: --resume goes on from there"
    return f"after step {progress.step}, which could not be saved ({why}): --resume goes on from the last checkpoint"


def train_step(job: Job, batch: Batch, step: int, guard: Guard) -> Outcome:
    """Forward and backward over the micro-batches of one step, and the optimizers' steps.

    A frozen backbone computes as in an evaluation, and no gradient reaches it: its optimizer has nothing to do.
    """
    frozen = step < job.steps.frozen
    if job.backbone.training == frozen:
        job.model.train(not frozen)
    # Dropout becomes a function of the step, so that a resumed run needs no stored generator state.
    torch.manual_seed(derive_key("step", job.config.run.seed, step, job.world.rank))
    guard.begin_step()
    parts = job.config.data.accumulation
    labels = batch.labels.to(job.world.device, non_blocking=True)
    job.head.draw(labels)
    loss = torch.zeros((), device=job.world.device)
    for i, (images_b, labels_b) in enumerate(zip(batch.images.chunk(parts), labels.chunk(parts), strict=True)):
        images, targets = job.mix(job.to_input(images_b), labels_b, step)
        is_last = i == parts - 1
        with job.gradients_stay_local(not is_last):
            with job.arithmetic.autocast(), torch.set_grad_enabled(not frozen):
                embeddings = job.model(images)
            part_loss = job.scorer(embeddings.float(), targets) / parts
            loss += part_loss.detach()
            if is_last:
                refused = guard.refuses(step, loss)
                if job.overlaps_head and not frozen:
                    _step_head_before_gradients_arrive(job, embeddings, refused)
            job.scaler.scale(part_loss).backward()
    outcome = update(job, loss, refused)
    guard.end_step(step, outcome)
    update_number, rest = divmod(step + 1, job.config.optim.ema_every)
    if job.average is not None and not rest:
        job.average.update(update_number - 1)
    return outcome


def update(job: Job, loss: Tensor, refused: Tensor) -> Outcome:
    """Clip, and step both optimizers, unless the loss is ``refused`` or the gradient not finite: then neither moves.

    Loss and gradient are the same on every rank, so all decide alike. With ``speed.overlap_head`` the head has
    moved already where the loss is not refused.
    """
    # None where a margin head trains alone; a loss scaler wants to be left alone then.
    moving = [p for group in job.optimizer.param_groups for p in group["params"] if p.grad is not None]
    if moving:
        job.scaler.unscale_(job.optimizer)
    limit = job.config.optim.clip_grad_norm or float("inf")
    grad_norm = nn.utils.clip_grad_norm_(moving, limit).to(loss.device)
    loss_scale = _loss_scale(job)
    skipped = refused | ~torch.isfinite(grad_norm)
    # Both optimizers step, or neither: fused ones look at found_inf on the device.
    job.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    if not (job.overlaps_head and moving):
        _step_head(job, skipped, loss_scale)
    rescaled = skipped & torch.isfinite(loss) & (loss_scale > 1)
    if moving:
        job.optimizer.step()
        job.optimizer.zero_grad()
        job.scaler.update()
    return Outcome(loss, grad_norm, skipped, rescaled)


def _step_head_before_gradients_arrive(job: Job, embeddings: Tensor, refused: Tensor) -> None:
    """Have the head step when the backward pass that now comes is computed, while DistributedDataParallel's last
    gradients still travel: it waits for them in a callback of its own, which comes after this one."""

    def step() -> None:
        _step_head(job, refused, _loss_scale(job))

    queue: Any = torch.autograd.Variable._execution_engine
    embeddings.register_hook(lambda grad: queue.queue_callback(step))


def _step_head(job: Job, skipped: Tensor, loss_scale: Tensor) -> None:
    if job.head_optimizer is not None:
        job.head_optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        job.head_optimizer.grad_scale = loss_scale  # type: ignore[attr-defined]
        job.head_optimizer.step()


def _loss_scale(job: Job) -> Tensor:
    return job.scaler.scale(torch.ones((), device=job.world.device))


def set_learning_rate(job: Job, step: int, factor: float = 1.0) -> float:
    """Give both optimizers ``factor`` times the rate of this step; returns the backbone's."""
    config, steps = job.config, job.steps
    rate = steps.base_lr * factor * schedule.factor(config.schedule, step, steps.total, steps.warmup)
    for group in job.optimizer.param_groups:  # of an earlier checkpoint's they say no layer
        group["lr"] = rate * config.optim.layer_decay ** group.get("layers_behind", 0)
    if job.head_optimizer is not None:
        job.head_optimizer.param_groups[0]["lr"] = rate * config.optim.head_lr_factor
    return rate


def evaluate(job: Job, progress: Progress, log: RunLog, clock: Clock) -> None:
    """Note and tell what the evaluator finds of the model as it is, while the clock of the training stands."""
    with clock.stopped() as progress.seconds:
        began = time.perf_counter()
        progress.evaluated(evaluation(job))
        took_s = time.perf_counter() - began
        progress.evaluation_seconds += took_s
        log.evaluated(took_s)


def evaluation(job: Job) -> Evaluation:
    """What the job's evaluator finds of the model as it is: of its averaged weights, where they are kept."""
    assert job.evaluator is not None
    agree_on_norms(job)
    averaged = job.average.in_place() if job.average else contextlib.nullcontext()
    with eager(job.compiled), averaged:
        found = job.evaluator(job.backbone, job.head)
    job.model.train()
    return found


# -- a whole run --------------------------------------------------------------------------------------


def run(config: Config, world: World, resume: bool = False) -> tuple[RunDirectory, dict[str, Any]]:
    """Train as configured, or continue; returns the run directory and what its result.json holds.

    UnwrittenError: the run has ended well, and its last checkpoint or result.json cannot be written.
    """
    with Interruption(config.run.grace_s) as interruption, contextlib.ExitStack() as held:
        # One rank looks and tells: on a network file system another might see an older state of the directory.
        directory = groups.on_main_rank(lambda: choose(config, resume))
        lock = held.enter_context
        found = Found()
        if resume:
            groups.on_main_rank(lambda: lock(directory.locked()))
            found = groups.on_main_rank(lambda: find(directory.checkpoints))
        use_threads(config.run.threads)
        if config.speed.keep_memory and world.device.type == "cpu":
            keep_freed_memory()
        if config.run.deterministic:
            use_deterministic_kernels()
        # A checkpoint brings the weights: those that the run once started from may be gone.
        weightless = {part: replace(getattr(config, part), weights="") for part in ("model", "head")}
        job = build_job(replace(config, **weightless) if found.path else config, world)
        if not resume:
            groups.on_main_rank(lambda: lock(directory.locked()))
        progress = groups.together(lambda: restore(job, found))
        job.config = config
        if 0 < progress.step >= job.total_steps:
            job.config, ignored = groups.on_main_rank(lambda: _as_trained(config, directory))
            found = replace(found, messages=(*found.messages, *ignored))
        groups.on_main_rank(lambda: _write_config(job, directory, progress))
        keep = {"keep_last": config.run.keep_last, "keep_every": config.run.keep_every}
        saver = Saver(directory.checkpoints, **keep, beside=config.run.async_save)
        held.callback(_finish, saver)
        progress, last = _train(job, directory, progress, found if resume else None, saver, interruption)
        result = _result(job, progress, directory)
        unwritten = groups.on_main_rank(lambda: directory.write_result(result))
    if last and last.error:
        unwritten = f"{last.error}; then --resume"
    if unwritten:
        raise UnwrittenError(unwritten, result)
    return directory, result


def _as_trained(config: Config, directory: RunDirectory) -> tuple[Config, list[str]]:
    """What a finished run was trained with, to be run and evaluated as ``config`` says; and a line for each setting
    that comes too late."""
    stored = load_recipe(str(directory.config), stored=True)
    kept = replace(stored, run=config.run, evaluate=config.evaluate)
    late = differences(kept, config).items()
    return kept, [f"{key} stays {was!r}: no step is left for {now!r}" for key, (was, now) in late]


def _write_config(job: Job, directory: RunDirectory, progress: Progress) -> None:
    """First, for it is what tells a run from other people's files, whenever a kill may come. Classes that have been
    trained keep their names: UserError for a set with others."""
    known, names = directory.read_classes() if progress.step else None, job.class_names or []
    # Another number of names is a damaged file: the checkpoint has as many classes as the data. It is written anew.
    if known and len(known) == len(names) and known != names:
        was, now = next(pair for pair in zip(known, names, strict=True) if pair[0] != pair[1])
        raise UserError(
            f"data.path: its classes are not those of {directory.path} ({now!r} in the place of {was!r}): name the "
            "run's set; or, where only names have changed, move the run's classes.txt away"
        )
    directory.write_config(job.config, job.class_names)


def _train(
    job: Job,
    directory: RunDirectory,
    progress: Progress,
    found: Found | None,
    saver: Saver,
    interruption: Interruption,
) -> tuple[Progress, Saved | None]:
    """Train to the end; after a divergence from the last checkpoint anew, if that is wanted.

    Returns how far it came, and the last save.

    found: where the run is continued, by what.
    """
    log = groups.together(lambda: RunLog(job, directory, progress, resume=found is not None))
    try:
        with log, job.arithmetic.active():
            for message in found.messages if found else ():
                log.warn(message)
            log.say(_greeting(job, directory, progress))
            if planned := foresight(job.config, job.world, job.num_classes):
                log.say(planned)
            if job.started and not found:
                log.say(job.started)
            if progress.step < job.steps.frozen:
                log.say(f"The backbone is frozen for the first {min(job.steps.frozen, job.total_steps)} steps")
            if found and not found.path:
                log.say(f"No checkpoint in {directory.path} yet: starting from the beginning")
            return progress, fit(job, log, progress, saver, interruption)
    except DivergedError as fault:
        _finish(saver)
        found = _way_back(job.config, directory, progress, fault)
    progress = groups.together(lambda: restore(job, found))
    return _train(job, directory, progress, found, saver, interruption)


def _finish(saver: Saver) -> None:
    """What is being written when a run ends badly is a good checkpoint: it was begun before."""
    with contextlib.suppress(Exception):
        saver.wait()


_LOWEST_RATE_FACTOR = 1 / 8  # so many rollbacks that did not help: the rate is not what is wrong


def _way_back(config: Config, directory: RunDirectory, progress: Progress, fault: DivergedError) -> Found:
    """The last good checkpoint, to go on from at half the rate. UserError where the run is to stop, or must."""
    found = groups.on_main_rank(lambda: find(directory.checkpoints))
    factor, wanted = progress.rate_factor / 2, config.run.on_divergence == "rollback"
    if not found.path or not wanted or factor < _LOWEST_RATE_FACTOR:
        known = f"{found.path.name} is whole" if found.path else "no checkpoint was saved before"
        other = "" if wanted or not found.path else "set run.on_divergence to rollback, "
        raise UserError(f"{fault}; {known}: lower optim.lr, {other}or look at the samples in {directory.bad_batches}")
    told = f"{fault}: back to {found.path.name}, with {factor:g} times the learning rate"
    return replace(found, messages=(*found.messages, told), rate_factor=factor)


def _greeting(job: Job, directory: RunDirectory, progress: Progress) -> str:
    config = job.config
    start = f"continuing at step {progress.step} of" if progress.step else "training for"
    if progress.step >= job.total_steps:
        start = f"finished already, at step {progress.step} of"
    threads = torch.get_num_threads()
    return (
        f"{config.recipe}: {start} {job.total_steps} steps, {job.num_classes:,} classes, "
        f"global batch {config.data.global_batch_size}, {config.model.name} in {job.arithmetic.compute}, "
        f"{job.world.size} x {job.world.device.type} ({threads} CPU threads each), into {directory.path}"
    )


def _result(job: Job, progress: Progress, directory: RunDirectory) -> dict[str, Any]:
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
        # What --checkpoint best means: the best step may not have been saved.
        kept = getattr(best(directory.checkpoints), "name", None)
        result["best"] = {"step": progress.best_step, "score": progress.best_score, "checkpoint": kept}
    return result
