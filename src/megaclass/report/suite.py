"""A suite on the console: what will be measured and what not, and the tables of its rows."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from megaclass.report.infer import infer_tables
from megaclass.report.page.words import changes
from megaclass.report.train import comparisons as of_training
from megaclass.report.train import train_tables
from megaclass.results.rows import Row


def suite_tables(rows: Iterable[Row]) -> Group:
    """Training, then inference."""
    found = list(rows)
    by = {name: [row for row in found if row.benchmark == name] for name in ("train", "infer")}
    makers = {"train": train_tables, "infer": infer_tables}
    return Group(*(makers[name](part) for name, part in by.items() if part))


def comparisons(rows: list[Row]) -> list[str]:
    return of_training([row for row in rows if row.benchmark == "train"])


def plan_table(plan: Sequence[Any]) -> Group:
    """The cases of a suite: those to be measured, and how they were scaled down; then what is left out, by reason."""
    table = Table(title="To be measured", title_justify="left", title_style="bold", box=None, padding=(0, 1))
    table.add_column("case")
    table.add_column("scaled down from what was published")
    for one in (one for one in plan if not one.skip):
        table.add_row(one.case.text, _scaled(one))
    out = Table(title="Left out", title_justify="left", title_style="bold", box=None, padding=(0, 1))
    out.add_column("case")
    out.add_column("reason")
    for one in (one for one in plan if one.skip):
        out.add_row((one.asked or one.case).text, one.skip)
    parts = [part for part in (table, out) if part.row_count]
    return Group(*parts)


def _scaled(one: Any) -> str:
    return changes(one.asked.parameters(), one.case.parameters()) if one.asked else ""
