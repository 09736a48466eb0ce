"""Rows of ``bench collectives`` as tables for the console."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from megaclass.results.rows import Row


def collective_tables(rows: Iterable[Row]) -> Group:
    """A table for each operation and number of ranks, one line a size: time and bandwidths of the median call, in
    10^9 bytes a second, as nccl-tests prints them."""
    groups = itertools.groupby(rows, lambda row: group_text(row.case))
    return Group(*(_table(text, list(found)) for text, found in groups))


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 0, 0, 1))
    columns = (("size", 7), ("ms p50", 9), ("p99", 9), ("algorithm GB/s", 14), ("bus GB/s", 9), ("calls", 6))
    for name, width in columns:
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(size_text(row.case["size_bytes"]), *_numbers(row))
    return table


def _numbers(row: Row) -> list[str]:
    if row.status != "ok":
        return [row.status]
    rates = (row.work[f"{name}_bytes_per_second"] for name in ("algorithm", "bus"))
    return [
        *(f"{row.step_ms[name]:.4g}" for name in ("p50", "p99")),
        *(f"{rate / 1e9:.3g}" for rate in rates),
        str(row.case["calls"]),
    ]


def group_text(case: Mapping[str, Any]) -> str:
    """What is done and by whom, whatever the size."""
    return f"{case['op']}, {case['dtype']}, {case['world_size']} ranks, {case['backend']}"


def size_text(size: int) -> str:
    """4096 as 4K, 1536 as 1.5K, 1000 as 1000: exact, in powers of 1024."""
    for factor, suffix in ((2**30, "G"), (2**20, "M"), (2**10, "K")):
        if size >= factor and size * 8 % factor == 0:
            return f"{size / factor:.15g}{suffix}"
    return str(size)
