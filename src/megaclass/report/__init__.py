"""Tables and pictures from the files that runs leave behind: no torch, no GPU."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Group

from megaclass.results.rows import Row


def console_tables(rows: Iterable[Row]) -> Group:
    """The tables of rows for a console, as their benchmarks declare them: those of one work after another."""
    from megaclass.report.sources import Source
    from megaclass.report.table import to_rich
    from megaclass.report.tables import own_tables

    sources = [Source(Path(), 0, row, place) for place, row in enumerate(rows, start=1)]
    groups = [
        [source for source in sources if source.row.benchmark == name]
        for name in dict.fromkeys(source.row.benchmark for source in sources)
    ]
    return Group(*(to_rich(t) for group in groups for t in own_tables(group)))


def comparisons(rows: Sequence[Row]) -> list[str]:
    """What rows that took turns say of one another, a line each."""
    from megaclass.report import compared

    return compared.comparisons(rows)
