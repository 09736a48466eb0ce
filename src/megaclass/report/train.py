"""Rows of ``bench train`` as a table for the console, with the scaling that follows from them."""

import itertools
from collections.abc import Iterable

from rich.console import Group
from rich.table import Table

from megaclass.report.page.casecolumns import differing_settings
from megaclass.report.page.peers import reference_of, spread, times_as_fast
from megaclass.report.page.words import short, value_text
from megaclass.results.rows import Row, held_mb

# Columns that stand there whatever is in them, and their least width.
_ALWAYS = {"images/s": 8, "compute/s": 9, "step ms": 7, "MiB": 6}
_TIMES = "times: how many times as fast as this line the first of those that took turns with it is, by median steps "
_TIMES += "(95% interval over rounds); spread: of the rounds' medians"


def train_tables(rows: Iterable[Row]) -> Group:
    """A table for each recipe: images a second over the timed epochs (harmonic means), by total time and by that of
    compute alone, the median step, memory, and scaling against the fewest devices. Where several took turns, who, the
    settings that differ, and how many times as fast the first of them is."""
    found = [row for row in rows if row.benchmark == "train"]
    works = itertools.groupby(found, lambda row: f"{row.case['recipe']} {row.case['backbone']}")
    return Group(*(_table(text, list(part)) for text, part in works))


def _table(title: str, rows: list[Row]) -> Table:
    """In company, what is the same in all lines stands in the title: settings need the room."""
    company = _company(rows)
    cells = company | _case_columns(rows)
    if company:
        same = [name for name, column in cells.items() if len(set(column)) == 1]
        title = ", ".join([title, *(f"{name} {cells.pop(name)[0]}" for name in same)])
    measured = [_measured(row, rows) for row in rows]
    names = [name for name in measured[0] if name in _ALWAYS or any(one[name] for one in measured)]
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 0, 0, 1))
    for name in cells:
        if name in company:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for name in names:
        table.add_column(name, min_width=_ALWAYS.get(name, 6), justify="right", no_wrap=True)
    for place, row in enumerate(rows):
        numbers = [measured[place][name] for name in names] if row.status == "ok" else [row.status]
        table.add_row(*(column[place] for column in cells.values()), *numbers)
    if "times" in names:
        table.caption, table.caption_justify = _TIMES, "left"
    return table


def _company(rows: list[Row]) -> dict[str, list[str]]:
    """Who, and the settings that differ; empty where all rows are alike in both."""
    settings = differing_settings([row.case for row in rows])
    columns = {name: [_setting(row, key) for row in rows] for key, name in _names(settings).items()}
    if len({row.implementation for row in rows}) > 1:
        columns = {"implementation": [row.implementation for row in rows]} | columns
    return columns


def _case_columns(rows: list[Row]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {}
    for row in rows:
        case, ranks = row.case, row.case["simulate_ranks"]
        for name, cell in {
            "devices": f"1 of {ranks}" if ranks > 1 else str(case["world_size"]),
            "batch": f"{case['global_batch_size']:,}",
            "px": str(case["image_size"]),
            "classes": short(case["num_classes"]),
            "rate": f"{case['sample_rate']:g}",
            "type": case["precision"],
        }.items():
            columns.setdefault(name, []).append(cell)
    return columns


def _names(settings: list[str]) -> dict[str, str]:
    """Settings without their section, where that tells them apart."""
    last = [key.rpartition(".")[2] for key in settings]
    return {key: name if last.count(name) == 1 else key for key, name in zip(settings, last, strict=True)}


def _setting(row: Row, key: str) -> str:
    settings = row.case.get("settings", {})
    return value_text(key, settings[key]) if key in settings else ""


def _measured(row: Row, rows: list[Row]) -> dict[str, str]:
    """The cells of a row that is ok."""
    if row.status != "ok":
        return dict.fromkeys((*_ALWAYS, "scaling", "spread", "times"), "")
    speeds = {f"{name}/s": row.rates.get(key) for name, key in (("images", "total"), ("compute", "compute"))}
    memory = held_mb(row.memory_mb)
    apart, mine = spread(row), reference_of(row, rows)
    ratio = times_as_fast(mine, row) if mine else None
    return {
        **{
            name: "" if speed is None else f"{speed:,.4g}" if speed < 1000 else f"{speed:,.0f}"
            for name, speed in speeds.items()
        },
        "step ms": f"{row.step_ms['p50']:.4g}",
        "MiB": "" if memory is None else f"{memory:,.0f}",
        "scaling": scaling(row, rows),
        "spread": "" if apart is None else f"{apart:.1%}",
        "times": str(ratio or ""),
    }


def scaling(row: Row, rows: Iterable[Row]) -> str:
    """``3.97 weak`` or ``3.12 strong``: how many times the speed of the fewest devices that did the same, with the same
    batch on each, or the same over all. Empty where nothing stands beside the row."""
    for kind in ("weak", "strong"):
        alike = [other for other in rows if other.status == "ok" and _work(other, kind) == _work(row, kind)]
        fewest = min(alike, key=lambda other: other.case["world_size"])
        if (
            fewest.case["world_size"] < row.case["world_size"]
            and row.rates["total"]
            and fewest.rates["total"]
        ):
            return f"{row.rates['total'] / fewest.rates['total']:.2f} {kind}"
    return ""


def _work(row: Row, kind: str) -> dict[str, object]:
    """What has to be the same in rows whose speeds are compared."""
    free = {"world_size", "threads", "collectives"}
    work = {name: value for name, value in row.case.items() if name not in free}
    work["by"] = row.implementation
    if kind == "weak":
        work["global_batch_size"] = row.case["global_batch_size"] / row.case["world_size"]
    return work


def comparisons(rows: list[Row]) -> list[str]:
    """What is worth a line beside rows that were measured together: the part of the machine's products that a step
    reaches, and how many times as fast the first is."""
    found = [row for row in rows if row.status == "ok"]
    settings = _names(differing_settings([row.case for row in found]))

    def who(row: Row) -> str:
        words = [f"{name} {_setting(row, key)}" for key, name in settings.items() if _setting(row, key)]
        return ", ".join([f"{row.implementation} {row.case['precision']}", *words])

    lines = []
    for row in found:
        if limit := row.work.get("limit_flops_per_second"):
            speed = row.work["flops_per_second"]
            text = f"{speed / 1e9:,.0f} GFLOP/s, {speed / limit:.0%} of what a large matrix product reaches"
            lines.append(f"{who(row)}: {text}" if len(found) > 1 else text)
    for row in found:
        mine = reference_of(row, found)
        if mine and (ratio := times_as_fast(mine, row)):
            lines.append(f"{who(mine)}: {ratio} times as fast as {who(row)}")
    return lines
