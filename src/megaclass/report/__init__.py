"""Tables and pictures from the files that runs leave behind: no torch, no GPU. What commands need is here; each imports
what it needs when it is called, so that a command that reports nothing starts quickly."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group

from megaclass.results.rows import Row


def console_tables(rows: Iterable[Row]) -> Group:
    """The tables of rows for a console, as their benchmarks declare them, one benchmark after another."""
    from megaclass.report.sources import Source
    from megaclass.report.table import to_rich
    from megaclass.report.tables import own_tables

    groups: dict[str, list[Source]] = {}
    for place, row in enumerate(rows, start=1):
        groups.setdefault(row.benchmark, []).append(Source(Path(), 0, row, place))
    return Group(*(to_rich(table) for group in groups.values() for table in own_tables(group)))


def comparisons(rows: Sequence[Row]) -> list[str]:
    """What rows that took turns say of one another, a line each."""
    from megaclass.report import compared

    return compared.comparisons(rows)


def plan_tables(plan: Sequence[Any]) -> Group:
    """The cases of a suite: those to be measured, and how they were scaled down; then what is left out, by reason."""
    from megaclass.report import console

    return console.plan_tables(plan)


def require_room(directory: Path) -> None:
    """Make the directory, and see that no report in it is somebody else's. UserError: it cannot be."""
    from megaclass.report import page

    page.require_room(directory)


def write_page(sources: Sequence[str], directory: Path) -> list[Path]:
    """Write the page, Markdown and CSV of files or directories of rows; returns their paths."""
    from megaclass.report import page

    return page.write(page.collect(sources), directory)


def draw_seeds(directory: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw ``curves.png`` of a study: of the run directories ``seed-N`` in it, for the seeds that have ``ok`` rows."""
    from megaclass.report import curves

    trained = [row for row in rows if row.status == "ok"]
    runs = {row.case["seed"]: directory / f"seed-{row.case['seed']}" for row in trained}
    if not trained:
        return []
    path = curves.draw_seeds(
        directory / "curves.png", runs, trained[0].case["metric"], trained[0].case["recipe"]
    )
    return [path] if path else []


def check_nvidia_report(path: Path, cases: Sequence[Any]) -> None:
    """UserError: a file that is somebody else's, or cases that the shape of NVIDIA's report cannot hold."""
    from megaclass.report import nvidia

    nvidia.check_report(path, cases)


def write_nvidia_report(path: Path, rows: Sequence[Row], mode: str) -> None:
    """Write rows in the shape of NVIDIA's report, replacing an earlier one."""
    from megaclass.report import nvidia

    nvidia.write_report(path, rows, mode)
