"""Rows of ``bench loader`` as tables for the console, and what the rows of one group say of one another."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from megaclass.report.compare import OURS, pairs
from megaclass.rows import Row
from megaclass.stats import Ratio, ratio_of_medians

BARE = "simplejpeg"
STAGES = ("read", "decode", "augment", "assemble", "copy")
_BAR = 8  # characters of all stages together


def loader_tables(rows: Iterable[Row]) -> Group:
    """Two tables for each case: every loader in a line, and our stages. Images a second are those of the median
    pass, by the wall's clock and by the processors'; the share is that of bare decode by the processors'."""
    parts: list[Table] = []
    for text, found in itertools.groupby(rows, lambda row: _case_text(row.case)):
        group = list(found)
        parts += [_speeds(text, group), *_stages(group)]
    return Group(*parts)


def _speeds(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 0, 0, 1))
    table.add_column("loader", min_width=20, no_wrap=True)
    for name, width in (("images/s", 9), ("a CPU second", 12), ("of bare decode", 14)):
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(contender(row), *_numbers(row, rows))
    return table


def _numbers(row: Row, rows: list[Row]) -> list[str]:
    if row.status != "ok":
        return [row.status]
    bare = next((other for other in rows if other.implementation == BARE and other.status == "ok"), None)
    share = f"{_speed_ratio(row, bare, True).value:.0%}" if bare and _decodes(row) else ""
    return [f"{row.samples_per_second:,.0f}", f"{row.work['samples_per_cpu_second']:,.0f}", share]


def _stages(rows: list[Row]) -> list[Table]:
    """Our CPU time an image by stage, with a bar for each; nothing where no row has stages."""
    staged = [row for row in rows if row.status == "ok" and f"cpu_us_{STAGES[-1]}" in row.work]
    if not staged:
        return []
    table = Table(box=None, padding=(0, 0, 0, 1))
    table.add_column("CPU time an image, µs", min_width=21, no_wrap=True)
    for name in STAGES:
        table.add_column(name, min_width=8, justify="right", no_wrap=True)
    for row in staged:
        times_us = [row.work.get(f"cpu_us_{name}") for name in STAGES]
        table.add_row(contender(row), *("" if us is None else f"{us:,.1f}" for us in times_us))
        table.add_row("", *("" if us is None else _bar(us, times_us) for us in times_us))
    return [table]


def _bar(us: float, times_us: list[float | None]) -> str:
    """A difference of two passes may come out a little below nothing."""
    whole = sum(max(other or 0.0, 0.0) for other in times_us)
    return "█" * round(_BAR * max(us, 0.0) / whole) if whole else ""


def comparisons(rows: list[Row]) -> list[str]:
    """Our rows against bare decode and the best row of each other loader, one line each, by CPU time."""
    lines = []
    for mine, other, paired in pairs(_best(rows)):
        if not _decodes(mine):
            continue
        ratio = _speed_ratio(mine, other, paired)
        what = "of bare decode" if other.implementation == BARE else f"times the images of {contender(other)}"
        lines.append(f"{contender(mine)}: {ratio} {what} in a CPU second")
    return lines


def _best(rows: list[Row]) -> list[Row]:
    """All of ours, and of every other loader that source from which it is fastest."""
    others: dict[str, Row] = {}
    for row in (row for row in rows if row.status == "ok" and row.implementation != OURS):
        best = others.setdefault(row.implementation, row)
        if row.work["samples_per_cpu_second"] > best.work["samples_per_cpu_second"]:
            others[row.implementation] = row
    return [row for row in rows if row.implementation == OURS] + [*others.values()]


def _speed_ratio(row: Row, reference: Row, paired: bool) -> Ratio:
    """Images a CPU second: all rows of a case pass as many images."""
    return ratio_of_medians(reference.cpu_ms, row.cpu_ms, paired=paired and reference.group == row.group)


def _decodes(row: Row) -> bool:
    return row.case["source"] != "synthetic"


def contender(row: Row) -> str:
    """Who, and what it reads."""
    return "bare decode" if row.implementation == BARE else f"{row.implementation} {row.case['source']}"


def _case_text(case: Mapping[str, Any]) -> str:
    """What has to be done, whoever does it."""
    text = f"{case['workload']}, batch {case['batch_size']}, {case['threads']} threads"
    if "image_bytes" in case:
        text += (
            f"; {case['data']}: {case['image_bytes'] / 1000:.3g} kB, {case['image_pixels'] / 1000:.4g} kpx"
        )
    return text
