"""Rows of ``bench train`` as a table for the console, with the scaling that follows from them."""

import itertools
from collections.abc import Iterable

from rich.console import Group
from rich.table import Table

from megaclass.report.head import short
from megaclass.rows import Row

_CELLS = ("total", "compute")


def train_tables(rows: Iterable[Row]) -> Group:
    """A table for each recipe: images a second over the timed epochs (harmonic means), by total time and by that of
    compute alone, the median step, memory, and scaling against the fewest devices."""
    found = [row for row in rows if row.benchmark == "train"]
    works = itertools.groupby(found, lambda row: f"{row.case['recipe']} {row.case['backbone']}")
    return Group(*(_table(text, list(part)) for text, part in works))


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 0, 0, 1))
    columns = {"devices": 7, "batch": 5, "px": 3, "classes": 7, "rate": 4, "type": 4}
    columns |= {"images/s": 8, "compute/s": 9, "step ms": 7, "MiB": 6, "scaling": 7}
    for name, width in columns.items():
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    for row in rows:
        case = row.case
        devices = f"1 of {case['simulate_ranks']}" if case["simulate_ranks"] > 1 else str(case["world_size"])
        table.add_row(
            devices,
            f"{case['global_batch_size']:,}",
            str(case["image_size"]),
            short(case["num_classes"]),
            f"{case['sample_rate']:g}",
            case["precision"],
            *_numbers(row, rows),
        )
    return table


def _numbers(row: Row, rows: list[Row]) -> list[str]:
    if row.status != "ok":
        return [row.status]
    speeds = [row.rates.get(name) for name in _CELLS]
    memory = next(
        (row.memory_mb[k] for k in ("reserved", "process") if row.memory_mb.get(k) is not None), None
    )
    return [
        *("" if speed is None else f"{speed:,.4g}" if speed < 1000 else f"{speed:,.0f}" for speed in speeds),
        f"{row.step_ms['p50']:.4g}",
        "" if memory is None else f"{memory:,.0f}",
        scaling(row, rows),
    ]


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
    if kind == "weak":
        work["global_batch_size"] = row.case["global_batch_size"] / row.case["world_size"]
    return work


def comparisons(rows: list[Row]) -> list[str]:
    """What is worth a line beside a row: the part of the machine's products that a step reaches."""
    return [
        f"{row.work['flops_per_second'] / 1e9:,.0f} GFLOP/s, {row.work['flops_per_second'] / limit:.0%} of what a "
        "large matrix product reaches"
        for row in rows
        if row.status == "ok" and (limit := row.work.get("limit_flops_per_second"))
    ]
