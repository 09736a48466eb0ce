"""What a person sees of a study: a line for each seed when it begins and when it is done, and between them, where the
terminal allows, how far it is."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TextColumn

from megaclass.bench.console import duration
from megaclass.results.rows import Row


class SeedsConsole:
    """See :class:`megaclass.bench.old_stability.seeds.Watcher`."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("")

    @contextmanager
    def live(self) -> Iterator["SeedsConsole"]:
        with self._bar:
            yield self

    def begins(self, number: int, total: int, seed: int) -> None:
        self._bar.update(self._task, description="starting")
        self.print(f"seed {seed} ({number} of {total})")

    def step(self, step: int, total: int | None, left_s: float | None) -> None:
        steps = f"step {step:,}" + (f" of {total:,}" if total else "")
        left = "" if left_s is None else f", {duration(left_s)} left for all seeds"
        self._bar.update(self._task, description=steps + left)

    def row(self, row: Row) -> None:
        if row.status != "ok":
            self.print(f"  {row.status}: {row.reason}")
            return
        metric = row.case["metric"]
        found = {metric: row.result.get(metric), "final_loss": row.result["final_loss"]}
        text = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)
        seconds = row.result["seconds"]
        if seconds is not None:
            text += f", {duration(seconds)} of training"
        if row.samples_per_second is not None:
            text += f", {row.samples_per_second:,.0f} samples/s"
        self.print(f"  {text}")

    def print(self, thing: object) -> None:
        self._console.print(thing, markup=False) if isinstance(thing, str) else self._console.print(thing)
