"""Rows of ``bench infer`` as a table for the console."""

import itertools
from collections.abc import Iterable

from rich.console import Group
from rich.table import Table

from megaclass.results.rows import Row

_LATENCIES = ("mean", "p50", "p90", "p95", "p99", "p100")


def infer_tables(rows: Iterable[Row]) -> Group:
    """A table for each model: images a second over the timed epochs (harmonic means, data and compute), the latency in
    ms by mean and percentiles, and the mean part of it that was waiting for data."""
    works = itertools.groupby((row for row in rows if row.benchmark == "infer"), _title)
    return Group(*(_table(text, list(found)) for text, found in works))


def _title(row: Row) -> str:
    case = row.case
    classes = f", {case['num_classes']:,} classes" if case["num_classes"] else ", embeddings"
    text = f"{case['recipe']} {case['backbone']}, {case['image_size']} px{classes}, {case['device']}"
    return text if case["device"] == "cuda" else f"{text} ({case['threads']} threads)"


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 0, 0, 1))
    for name, width in (("engine", 9), ("type", 4)):
        table.add_column(name, min_width=width, no_wrap=True)
    columns = {"batch": 5, "images/s": 8} | dict.fromkeys(_LATENCIES, 6) | {"data": 6}
    for name, width in columns.items():
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    for row in rows:
        case = row.case
        precision = f"{case['precision']}{'+tf32' if case['tf32'] else ''}"
        table.add_row(case["engine"], precision, f"{case['batch_size']:,}", *_numbers(row))
    return table


def _numbers(row: Row) -> list[str]:
    if row.status != "ok":
        return [row.status]
    rate = row.rates["total"]
    waited = sum(row.data_ms) / len(row.data_ms)
    return [
        "" if rate is None else f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}",
        *(f"{row.step_ms[name]:.4g}" for name in _LATENCIES),
        f"{waited:.3g}" if waited >= 0.01 else "<0.01",
    ]


def comparisons(rows: list[Row]) -> list[str]:
    """What is worth a line beside a row: how long its engine took to get ready, where it compiles anything."""
    return [
        f"ready after {row.work['compile_s']:.3g} s, its first step included"
        for row in rows
        if row.status == "ok" and row.case["engine"] != "eager"
    ]
