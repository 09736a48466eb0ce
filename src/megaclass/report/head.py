"""Rows of ``bench head`` as a table for the console, and what the rows of one group say of one another."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from megaclass.report.compare import pairs
from megaclass.report.page.words import short as short
from megaclass.results.rows import Row
from megaclass.results.stats import ratio_of_medians


def head_tables(rows: Iterable[Row]) -> Group:
    """A table for each work, one line a row. Rates are those of the median step, beside what part they are of
    what the machine can do; memory is the GPU's, or that of the process on a CPU."""
    works = itertools.groupby(rows, lambda row: work_text(row.case))
    return Group(*(_table(text, list(found)) for text, found in works))


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 0, 0, 1))
    table.add_column("implementation products/storage", min_width=32, no_wrap=True)
    for name, width in (("step ms", 7), ("samples/s", 9), ("MiB", 7), ("GFLOP/s", 8), ("GB/s", 8)):
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(contender(row), *_numbers(row))
    return table


def _numbers(row: Row) -> list[str]:
    if row.status != "ok":
        return [row.status]
    memory = row.memory_mb.get("allocated")
    memory = row.memory_mb.get("process") if memory is None else memory
    return [
        f"{row.step_ms['p50']:.4g}",
        f"{row.samples_per_second:,.0f}",
        "" if memory is None else f"{memory:,.0f}",
        *(_of_limit(row.work, name) for name in ("flops", "bytes")),
    ]


def _of_limit(work: dict[str, float], name: str) -> str:
    rate, limit = work[f"{name}_per_second"], work.get(f"limit_{name}_per_second")
    return f"{rate / 1e9:,.3g}" + (f" {rate / limit:3.0%}" if limit else "")


def comparisons(rows: list[Row]) -> list[str]:
    """Our rows against the others that were measured with them, one line each."""
    lines = []
    for mine, other, paired in pairs(rows):
        faster = ratio_of_medians(other.samples_ms, mine.samples_ms, paired=paired)
        lines.append(f"{contender(mine)}: {faster} times as fast as {contender(other)}{_memory(mine, other)}")
    return lines


def _memory(mine: Row, other: Row) -> str:
    for name in ("allocated", "process"):
        ours, theirs = mine.memory_mb.get(name), other.memory_mb.get(name)
        if ours is not None and theirs:
            return f", with {ours / theirs:.2f} of its memory"
    return ""


def contender(row: Row) -> str:
    """Who, at which precision of products and storage, and on which allocator."""
    case = row.case
    kind = f"{case['precision']}/{case['storage']}"
    extra = [case["placement"]] if case.get("placement") == "host" else []
    extra += [case["malloc"]] if "malloc" in case else []
    return " ".join([row.implementation, kind, *extra])


def work_text(case: Mapping[str, Any]) -> str:
    """What has to be done, whoever does it."""
    text = f"{short(case['num_classes'])} x {case['embedding_dim']}, batch {case['batch_size']}"
    text += f", rate {case['sample_rate']:g}"
    if case["simulate_ranks"] != 1:
        text += f", 1 of {case['simulate_ranks']} ranks"
    return text if case["world_size"] == 1 else f"{text}, {case['world_size']} ranks"
