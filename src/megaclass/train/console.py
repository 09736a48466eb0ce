"""What a person sees of a run: the familiar line, and a progress bar where the terminal allows."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megaclass.results.events import StepEvent


def training_line(event: StepEvent) -> str:
    """arcface_torch's line, so that scripts which read it go on working, and what it lacks behind it."""
    line = (
        f"Training: Speed {event.samples_per_second or 0:.2f} samples/sec   Loss {_number(event.loss)}   "
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


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"


class RunConsole:
    """Prints lines, with a bar below them on a terminal. Silent on ranks other than the main one."""

    def __init__(self, total_steps: int, first_step: int, enabled: bool) -> None:
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True, quiet=not enabled)
        self._bar: Progress | None = None
        if enabled and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step)

    def __enter__(self) -> "RunConsole":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step)

    def print(self, line: object) -> None:
        self._console.print(line, markup=False) if isinstance(line, str) else self._console.print(line)
