"""What a person sees of a sweep: a line for each measured row, and a bar where the terminal allows."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn

from megaclass.bench.case import Benchmark
from megaclass.results.rows import Row

BUSY_PERCENT = 10.0  # from here on a person should know that the machine was shared


class SweepConsole:
    """Prints what happens, as it happens."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"), console=self._console, transient=True, disable=not live
        )
        self._task = self._bar.add_task("")
        self._told_busy = False

    def __enter__(self) -> "SweepConsole":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def begins(self, number: int, total: int, case: Any, left_s: float | None) -> None:
        """``left_s`` is None as long as nothing is known."""
        left = "" if left_s is None else f", {duration(left_s)} left"
        self.print(f"case {number} of {total}{left}: {case.text}")
        self._told_busy = False

    def step(self, done: float, total: int) -> None:
        self._bar.update(self._task, description=f"{done / total:.0%} of this case")

    def row(self, row: Row, benchmark: Benchmark, who: str) -> None:
        """Its median step, and what the benchmark's pages begin with."""
        if row.status != "ok":
            self.print(f"  {who}: {row.status}: {row.reason}")
            return
        step, headline = row.step_ms, benchmark.metric(benchmark.headline)
        said = [f"{step['p50']:.4g} ms (p90 {step['p90']:.4g})"] if step else []
        if headline and (value := headline.read(row)) is not None:
            said.append(f"{headline.title} {value:,.4g}")
        self.print(f"  {who}: {', '.join(said)}")
        if (row.cpu_wait_percent or 0) > BUSY_PERCENT and not self._told_busy:
            self._told_busy = True
            self.print(
                f"    other programs were busy: processors were waited for in {row.cpu_wait_percent:.0f}% of the time"
            )

    def print(self, thing: object) -> None:
        self._console.print(thing, markup=False) if isinstance(thing, str) else self._console.print(thing)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )
