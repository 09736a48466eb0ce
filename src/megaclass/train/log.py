"""What a run tells: to the person at the console, to train.log, to events.jsonl, to trackers."""

import contextlib
import dataclasses
import datetime
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import psutil
from rich import progress as bars
from rich.console import Console
from torch import Tensor

from megaclass.checkpoint import Saved
from megaclass.config import Config, Steps, differences, from_mapping
from megaclass.data.loader import Batch
from megaclass.data.open import split_paths
from megaclass.errors import UserError, in_bytes, printable
from megaclass.parallel import groups
from megaclass.results import events
from megaclass.results.jsonl import LineFile
from megaclass.results.machine import snapshot
from megaclass.results.rundir import RunDirectory
from megaclass.train.guard import Suspect
from megaclass.train.job import Job
from megaclass.train.progress import Progress
from megaclass.train.track import Tracking

_PLOTTED = ("loss", "learning_rate", "samples_per_second", "grad_norm")
_MOST_SUSPECTS = 100  # of a batch each, so that the file stays small
_HEADLINES = ("pair_accuracy", "auc", "top1", "top5")


class RunLog:
    """Tells how ``progress`` moves, which it only reads. Ranks other than the main one stay silent.

    A context manager: leaving it closes the files and writes why the run ended.
    """

    def __init__(self, job: Job, directory: RunDirectory, progress: Progress, resume: bool) -> None:
        is_main, hosts = groups.rank() == 0, groups.gather_objects(platform.node())
        self.directory = directory
        self._job, self._progress = job, progress
        self._waited_ms = [0.0, 0.0, 0.0]  # as ``wait`` takes them, since the last line
        self._told_step, self._told_s = progress.step, progress.seconds
        resumed_from = progress.step if resume else None
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True, quiet=not is_main)
        columns = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
        self._bar = bars.Progress("training", *columns, console=self._console, transient=True)
        self._task = self._bar.add_task("", total=job.total_steps)
        self._file = _appended(directory.log if is_main else Path(os.devnull))
        self._writer = events.EventWriter(directory.events, resumed_from, is_main, self._caution)
        self._is_main, self._suspects_told, self._is_moved = is_main, 0, False
        self._tracking: Tracking | None = None
        if is_main:
            before = self._writer.last_start
            moved = _who_left(before.hosts, hosts) if before else ""
            self._writer.write(
                events.StartEvent(
                    config=dataclasses.asdict(job.config),
                    environment=snapshot(),
                    world_size=job.world.size,
                    resumed_from_step=resumed_from,
                    total_steps=job.total_steps,
                    hosts=hosts,
                    epoch_samples=job.epoch_samples,
                    init_s=time.time() - psutil.Process().create_time(),
                )
            )
            for message in filter(None, (self._writer.set_aside, moved, *warnings_of(job.config, job.steps))):
                self.warn(message)
            for line in _changes(before.config if before else {}, job.config, progress.step):
                self.say(line)
            self._tracking = Tracking(directory, job.config, progress.step, self.warn)

    def __enter__(self) -> "RunLog":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._bar.stop()
        reason = "finished" if error is None else f"{type(error).__name__}: {error}"
        end = events.EndEvent(reason=reason, steps=self._progress.step, seconds=self._progress.seconds)
        self._writer.write(end)
        if self._tracking:
            self._tracking.close(finished=error is None)
        self._writer.close()
        self._note(f"{reason}, at step {end.steps} of {self._job.total_steps}, after {end.seconds:.1f} s of training")
        with contextlib.suppress(OSError):  # what a full disk did not take is tried once more
            self._file.close()

    def say(self, line: str, noted: str = "") -> None:
        """Print the line, and write it, or what is ``noted`` in its place, to train.log."""
        self._console.print(printable(line), markup=False)
        self._note(noted or line)

    def _note(self, line: str) -> None:
        self._file.write(f"{_now()}   {printable(line)}\n")

    def _caution(self, message: str) -> None:
        self.say(f"Warning: {message}")

    def step_done(self, batch: Batch) -> None:
        spent_ms = (batch.wait_ms, batch.read_ms, batch.decode_ms)
        self._waited_ms = [a + b for a, b in zip(self._waited_ms, spent_ms, strict=True)]
        self._bar.update(self._task, completed=self._progress.step)

    def tell(self, rate: float, grad_norm: Tensor) -> None:
        """The line of the steps since the last one."""
        progress, size = self._progress, self._job.config.data.global_batch_size
        elapsed_s = max(progress.seconds - self._told_s, 1e-9)
        steps = progress.step - self._told_step
        wait_percent, wait_cause = wait(self._waited_ms, self._job.feed.take_wait_ms(), elapsed_s)
        event = events.StepEvent(
            step=progress.step,
            epoch=(progress.step * size - 1) // self._job.epoch_samples,
            samples=progress.step * size,
            loss=progress.loss,
            learning_rate=rate,
            samples_per_second=steps * size / elapsed_s,
            wait_percent=wait_percent,
            wait_cause=wait_cause,
            damaged_samples=progress.damaged_samples,
            grad_norm=float(grad_norm),
            skipped_steps=progress.skipped_steps,
            time_s=progress.seconds,
        )
        self._writer.write(event)
        line, total = training_line(event), self._job.total_steps
        left = datetime.timedelta(seconds=round((total - progress.step) * elapsed_s / steps))
        in_full = f"{line}   Of: {total}   Left: {left}"
        # A terminal has the bar, which says the rest.
        self.say(line if self._console.is_terminal else f"{in_full}   {_now()}", noted=in_full)
        self._plot("train", {name: getattr(event, name) for name in _PLOTTED})
        self._told_step, self._told_s, self._waited_ms = progress.step, progress.seconds, [0.0, 0.0, 0.0]

    def evaluated(self, took_s: float) -> None:
        step, found = self._progress.step, self._progress.evaluation
        assert found is not None
        several = "others" in found.metrics
        for name, metrics, roc in found.sets():
            event = events.EvaluationEvent(step=step, name=name, metrics=metrics, roc=roc, seconds=took_s)
            self._writer.write(event)
            numbers = {k: v for k, v in metrics.items() if k in _HEADLINES or k.endswith("way")}
            line = "   ".join(f"{key} {value:.4f}" for key, value in numbers.items() if value is not None)
            self.say(f"Evaluation: step {step}   {f'{name}   ' if several else ''}{line}")
            if several:  # arcface_torch's line, for scripts that read it
                flip = "-Flip" if self._job.config.evaluate.flip else ""
                self.say(
                    f"[{name}][{step}]Accuracy{flip}: "
                    f"{metrics['pair_accuracy']:.5f}+-{metrics['pair_accuracy_std']:.5f}"
                )
            self._plot(name, numbers)

    def warn(self, message: str) -> None:
        self._caution(message)
        self._writer.write(events.WarningEvent(message=message, step=self._progress.step))

    def saved(self, found: Saved) -> None:
        """A checkpoint is written, or was refused by the disk."""
        if found.error:
            self.warn(f"{found.error}; the run goes on")
            return
        self.say(
            f"Checkpoint: step {found.step}   {in_bytes(found.bytes)} in {found.seconds:.1f} s   "
            f"Stall: {found.stall_s:.2f} s"
        )
        relative = str(found.path.relative_to(self.directory.path))
        numbers = {"stall_s": found.stall_s, "seconds": found.seconds}
        self._writer.write(events.CheckpointEvent(step=found.step, path=relative, **numbers))
        if self._is_main and not self._is_moved and not self.directory.config.exists():
            self._is_moved = True
            self.warn(
                f"{self.directory.path} was moved or deleted; from now on its checkpoints lie in a new one there: "
                "move them to the old one to resume it"
            )

    def suspect(self, found: Suspect | None) -> None:
        """Note which samples a step had whose loss or gradient went wrong, and tell of it the first time."""
        if found is None:
            return
        ids = self._job.samples_of_step
        samples = ids(found.step - 1).tolist() if ids else None
        if self._suspects_told == 0:
            self.warn(
                f"step {found.step}: loss {found.loss:.4g}, gradient {found.grad_norm:.4g}; its samples, and those of "
                f"other such steps, are noted in {self.directory.bad_batches}"
            )
        self._suspects_told += 1
        if self._is_main and self._suspects_told <= _MOST_SUSPECTS:
            with contextlib.suppress(OSError), LineFile(self.directory.bad_batches) as file:
                file.append({**dataclasses.asdict(found), "samples": samples})

    def _plot(self, group: str, numbers: dict[str, float | None]) -> None:
        if self._tracking:
            named = {f"{group}/{name}": value for name, value in numbers.items()}
            self._tracking.add(named, self._progress.step)


def _who_left(before: list[str] | None, now: list[str]) -> str:
    """A line about ranks that are no longer there; empty where all are."""
    if before is None or len(now) >= len(before):
        return ""
    left = Counter(before) - Counter(now)
    names = " and ".join(f"{host} has left with {count}" for host, count in left.items())
    return f"{len(now)} ranks instead of {len(before)}: {names}"


def _changes(before: dict[str, Any], config: Config, step: int) -> Iterator[str]:
    """A line for each setting that a resumed run has otherwise than it had until then."""
    with contextlib.suppress(UserError):  # of a version that knew other settings
        for key, (was, now) in differences(from_mapping(before, config, stored=True), config).items():
            if key in ("model.weights", "head.weights"):  # they may be gone by now
                if now and step:
                    yield f"{key} {now!r} is not read: the run goes on from its checkpoint"
            elif key != "run.output":
                yield f"{key} is {now!r} from here on, and was {was!r}"


def _now() -> str:
    return f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"


def wait(waited_ms: Iterable[float], copy_ms: float, elapsed_s: float) -> tuple[float, str | None]:
    """Percent of ``elapsed_s`` spent waiting, and for most of it on what: disk, decode or copy (None: no wait).

    ``waited_ms``: of the loop, and what the loader's threads spent on reading and on all the rest, which says why;
    ``copy_ms``: of the device.
    """
    loop_ms, read_ms, decode_ms = waited_ms
    if not loop_ms + copy_ms:
        return 0.0, None
    of_loop = "disk" if read_ms > decode_ms else "decode"
    cause = "copy" if copy_ms > loop_ms else of_loop
    return min(100.0, (loop_ms + copy_ms) / 10 / elapsed_s), cause


def training_line(event: events.StepEvent) -> str:
    """arcface_torch's line, so that scripts which read it go on working, and what it lacks behind it."""
    loss = "nan" if event.loss is None else f"{event.loss:.4f}"
    line = (
        f"Training: Speed {event.samples_per_second or 0:.2f} samples/sec   Loss {loss}   "
        f"LearningRate {event.learning_rate:.4f}   Epoch: {event.epoch}   Global Step: {event.step}   "
        f"Wait: {event.wait_percent or 0:.0f}%"
    )
    if event.wait_cause and (event.wait_percent or 0) >= 0.5:
        line += f" ({event.wait_cause})"
    if event.skipped_steps:
        line += f"   Skipped: {event.skipped_steps}"
    if event.damaged_samples:
        line += f"   Damaged: {event.damaged_samples}"
    return line


def warnings_of(config: Config, steps: Steps) -> Iterator[str]:
    """What is allowed, and seldom meant."""
    data, evaluation = config.data, config.evaluate
    if not (config.run.checkpoint_minutes or 0 < steps.between_checkpoints < steps.total):
        yield "nothing is saved before the end; set run.checkpoint_minutes or run.checkpoint_every"
    if steps.warmup >= steps.total > 1:
        yield f"the warm-up takes all {steps.total} steps; shorten it, or train longer"
    if data.path and evaluation.path:
        trained, tested = ({os.path.realpath(p) for p in split_paths(s.path)} for s in (data, evaluation))
        for path in trained & tested:
            yield f"{path} is trained on and evaluated on: its scores say little"


def _appended(path: Path) -> "Lasting":
    try:
        return Lasting(path.open("a", buffering=1, encoding="utf-8"))
    except OSError:
        return Lasting(open(os.devnull, "w"))  # noqa: PTH123 - as long as the run


class Lasting:
    """A stream that loses what cannot be written, its disk full or its reader gone: training goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
