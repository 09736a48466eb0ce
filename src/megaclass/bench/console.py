"""What a person sees of a sweep: a line for each measured row, and a bar where the terminal allows."""

from types import TracebackType

from rich.console import Console
from rich.progress import Progress, TextColumn

from megaclass.bench.benchmark import Case
from megaclass.results.rows import Row, setting_text

BUSY_PERCENT = 10.0  # from here on a person should know that the machine was shared


class SweepConsole:
    """Prints what happens, as it happens."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"), console=self._console, transient=True, disable=not self._live
        )
        self._task = self._bar.add_task("")
        self._told_busy = False

    @property
    def _live(self) -> bool:
        return self._console.is_terminal

    def __enter__(self) -> "SweepConsole":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def begins(self, number: int, total: int, case: Case, left_s: float | None) -> None:
        left = "" if left_s is None else f", {duration(left_s)} left"
        self._console.print(f"case {number} of {total}{left}: {case.text}", markup=False)
        self._told_busy = False

    def step(self, done: float, total: int) -> None:
        if self._live:
            self._bar.update(self._task, description=f"{done / total:.0%} of this case")

    def row(self, row: Row) -> None:
        words = [str(row.case[key]) for key in ("source", "loader", "malloc") if key in row.case]
        for key, value in row.case.get("settings", {}).items():
            words.append(f"{key}={setting_text(value)}")
        who = " ".join([row.implementation, *words])
        if row.status != "ok":
            self._console.print(f"  {who}: {row.status}: {row.reason}", markup=False)
            return
        step = row.step_ms
        text = f"  {who}: {step['p50']:.4g} ms (p90 {step['p90']:.4g})"
        if row.samples_per_second is not None:
            text += f", {row.samples_per_second:,.0f} samples/s"
        if "bus_bytes_per_second" in row.work:
            text += f", bus {row.work['bus_bytes_per_second'] / 1e9:.3g} GB/s"
        if "samples_per_cpu_second" in row.work:
            text += f", {row.work['samples_per_cpu_second']:,.0f} a CPU second"
        self._console.print(text, markup=False)
        if (row.cpu_wait_percent or 0) > BUSY_PERCENT and not self._told_busy:
            self._told_busy = True
            self._console.print(
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
