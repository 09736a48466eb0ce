"""What a person sees of a sweep: a line for each measured row, and a bar where the terminal allows."""

from types import TracebackType

from rich.console import Console
from rich.progress import Progress, TextColumn

from megaclass.bench.cases import HeadCase
from megaclass.rows import Row

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

    def begins(self, number: int, total: int, case: HeadCase, left_s: float | None) -> None:
        left = "" if left_s is None else f", {duration(left_s)} left"
        self._console.print(f"case {number} of {total}{left}: {case_text(case)}", markup=False)
        self._told_busy = False

    def step(self, done: int, total: int) -> None:
        if self._live:
            self._bar.update(self._task, description=f"step {done} of {total}")

    def row(self, row: Row) -> None:
        who = " ".join(filter(None, [row.implementation, str(row.case.get("malloc", ""))]))
        if row.status != "ok":
            self._console.print(f"  {who}: {row.status}: {row.reason}", markup=False)
            return
        step = row.step_ms
        self._console.print(
            f"  {who}: {step['p50']:.4g} ms (p90 {step['p90']:.4g}), {row.samples_per_second:,.0f} samples/s",
            markup=False,
        )
        if (row.cpu_wait_percent or 0) > BUSY_PERCENT and not self._told_busy:
            self._told_busy = True
            self._console.print(
                f"    other programs were busy: processors were waited for in {row.cpu_wait_percent:.0f}% of the time"
            )

    def print(self, thing: object) -> None:
        self._console.print(thing, markup=False) if isinstance(thing, str) else self._console.print(thing)


def case_text(case: HeadCase) -> str:
    text = f"{case.num_classes:,} x {case.embedding_dim}, batch {case.batch_size}, rate {case.sample_rate:g}"
    if case.simulate_ranks > 1:
        text += f", rank 0 of {case.simulate_ranks}"
    if case.world_size > 1:
        text += f", {case.world_size} ranks"
    return f"{text}, {case.precision} products, {case.storage} storage, {case.device}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )
