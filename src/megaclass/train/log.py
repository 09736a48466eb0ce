"""What a run tells: to the person at the console, to events.jsonl, to TensorBoard."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from megaclass.config import to_mapping
from megaclass.data.loader import Batch
from megaclass.parallel import groups
from megaclass.results import events
from megaclass.results.machine import snapshot
from megaclass.results.rundir import RunDirectory
from megaclass.train.console import RunConsole, training_line
from megaclass.train.job import Job
from megaclass.train.progress import Progress
from megaclass.train.stall import StallMeter


class RunLog:
    """Measures the pace between log lines and tells it. Ranks other than the main one stay silent.

    A context manager: leaving it closes the files and writes why the run ended.
    """

    def __init__(self, job: Job, directory: RunDirectory, resumed_from_step: int | None) -> None:
        is_main = groups.rank() == 0
        self.directory = directory
        self._device = job.world.device
        self._config, self._epoch_samples, self._total_steps = job.config, job.epoch_samples, job.total_steps
        self._console = RunConsole(job.total_steps, resumed_from_step or 0, is_main)
        self._writer = events.EventWriter(directory.events, resumed_from_step, enabled=is_main)
        self._tensorboard = (
            _summary_writer(directory, resumed_from_step or 0)
            if is_main and job.config.run.tensorboard
            else None
        )
        self._began = self._mark = time.perf_counter()  # moved on by the time the clock is stopped
        self._before_s = 0.0
        self._mark_step = 0
        self._stalls = StallMeter(job.feed.take_wait_ms)
        self._steps = 0
        if is_main:
            self._writer.write(
                events.StartEvent(
                    config=to_mapping(job.config),
                    environment=snapshot(),
                    world_size=job.world.size,
                    resumed_from_step=resumed_from_step,
                )
            )
            if job.steps.warmup >= job.steps.total > 1:
                self.warn(f"the warm-up takes all {job.steps.total} steps; shorten it, or train longer")

    def __enter__(self) -> "RunLog":
        self._console.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._console.__exit__(kind, error, trace)
        reason = "finished" if error is None else f"{type(error).__name__}: {error}"
        self._writer.write(events.EndEvent(reason=reason, steps=self._steps, seconds=self._seconds()))
        self._writer.close()
        if self._tensorboard:
            self._tensorboard.close()

    def say(self, line: object) -> None:
        self._console.print(line)

    def warn(self, message: str) -> None:
        self._console.print(f"Warning: {message}")
        self._writer.write(events.WarningEvent(message=message))

    # -- training -------------------------------------------------------------------------------------

    def training_starts(self, progress: Progress) -> None:
        self._before_s, self._mark_step, self._steps = progress.seconds, progress.step, progress.step
        self._began = self._mark = time.perf_counter()

    def is_due(self, step: int) -> bool:
        return step % self._config.run.log_every == 0 or step == self._total_steps

    def step_done(self, progress: Progress, rate: float, grad_norm: Tensor, batch: Batch) -> None:
        self._stalls.add(batch)
        self._steps = progress.step
        self._console.advance(progress.step)
        progress.seconds = self._seconds()
        if not self.is_due(progress.step):
            return
        size = self._config.data.global_batch_size
        elapsed_s = max(time.perf_counter() - self._mark, 1e-9)
        wait_percent, wait_cause = self._stalls.read(elapsed_s)
        event = events.StepEvent(
            step=progress.step,
            epoch=(progress.step * size - 1) // self._epoch_samples,
            samples=progress.step * size,
            loss=progress.loss,
            learning_rate=rate,
            samples_per_second=(progress.step - self._mark_step) * size / elapsed_s,
            wait_percent=wait_percent,
            wait_cause=wait_cause,
            damaged_samples=progress.damaged_samples,
            grad_norm=float(grad_norm),
            skipped_steps=progress.skipped_steps,
            time_s=progress.seconds,
        )
        self._writer.write(event)
        self._console.print(training_line(event))
        self._plot("train", {name: getattr(event, name) for name in _PLOTTED}, event.step)
        self._mark, self._mark_step = time.perf_counter(), progress.step

    @contextlib.contextmanager
    def clock_stopped(self, progress: Progress) -> Iterator[None]:
        """What happens inside is not training time."""
        self._synchronise()  # what the device still has to do is training time
        stopped = time.perf_counter()
        progress.seconds = self._seconds()
        yield
        self._synchronise()
        away = time.perf_counter() - stopped
        self._began += away
        self._mark += away

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _seconds(self) -> float:
        return self._before_s + time.perf_counter() - self._began

    # -- milestones -----------------------------------------------------------------------------------

    def evaluated(self, progress: Progress) -> None:
        found = progress.evaluation
        assert found is not None
        several = "others" in found.metrics
        for name, metrics, roc in found.sets():
            self._writer.write(
                events.EvaluationEvent(step=progress.step, name=name, metrics=metrics, roc=roc)
            )
            numbers = {k: v for k, v in metrics.items() if k in _HEADLINES or k.endswith("way")}
            line = "   ".join(f"{key} {value:.4f}" for key, value in numbers.items() if value is not None)
            told = f"step {progress.step}   {f'{name}   ' if several else ''}{line}"
            self._console.print(f"Evaluation: {told}")
            if several:  # arcface_torch's line, for scripts that read it
                flip = "-Flip" if self._config.evaluate.flip else ""
                self._console.print(
                    f"[{name}][{progress.step}]Accuracy{flip}: "
                    f"{metrics['pair_accuracy']:.5f}+-{metrics['pair_accuracy_std']:.5f}"
                )
            self._plot(name, numbers, progress.step)

    def saved(self, progress: Progress, path: Path) -> None:
        relative = path.relative_to(self.directory.path)
        self._writer.write(events.CheckpointEvent(step=progress.step, path=str(relative)))

    def _plot(self, group: str, numbers: dict[str, float | None], step: int) -> None:
        if self._tensorboard:
            for name, value in numbers.items():
                if value is not None:
                    self._tensorboard.add_scalar(f"{group}/{name}", value, step)


_PLOTTED = ("loss", "learning_rate", "samples_per_second", "grad_norm")
_HEADLINES = ("pair_accuracy", "auc", "top1", "top5")


def _summary_writer(directory: RunDirectory, first_step: int) -> Any:
    """A TensorBoard writer, where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory.tensorboard), purge_step=first_step)
