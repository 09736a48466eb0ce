"""Rows of ``bench loader`` as tables for the console, and what the rows of one group say of one another."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from megaclass.report.compare import OURS
from megaclass.results.rows import Row
from megaclass.results.stats import Ratio, ratio_of_medians

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
    share = f"{_speed_ratio(row, bare).value:.0%}" if bare and _decodes(row) and not _elsewhere(row) else ""
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
    """Our rows against bare decode and the best row of each other loader, one line each: by CPU time, or by the
    wall's clock among those that deliver to a GPU, where time of the processors is not what limits."""
    good = [row for row in rows if row.status == "ok"]
    mine = [row for row in good if _ours(row) and _decodes(row)]
    lines = []
    for row, other in itertools.product(mine, _best([row for row in good if not _ours(row)])):
        if _on_gpu(row) and _on_gpu(other):
            ratio = ratio_of_medians(other.samples_ms, row.samples_ms, paired=_took_turns(row, other))
            what = f"times the images of {contender(other)} in a second"
        else:
            ratio = _speed_ratio(row, other)
            bare = other.implementation == BARE
            what = (
                f"{'of bare decode' if bare else f'times the images of {contender(other)}'} in a CPU second"
            )
        lines.append(f"{contender(row)}: {ratio} {what}")
    return lines


def _ours(row: Row) -> bool:
    """Whether our own threads decode."""
    return row.implementation == OURS and "loader" not in row.case


def _best(rows: list[Row]) -> list[Row]:
    """Of every loader that source from which it is fastest."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        name = row.implementation, row.case.get("loader", "")
        if _speed(row) > _speed(found.setdefault(name, row)):
            found[name] = row
    return [*found.values()]


def _speed(row: Row) -> float:
    speed = row.samples_per_second if _on_gpu(row) else row.work["samples_per_cpu_second"]
    return speed or 0.0


def _speed_ratio(row: Row, reference: Row) -> Ratio:
    """Images a CPU second: all rows of a case pass as many images."""
    return ratio_of_medians(reference.cpu_ms, row.cpu_ms, paired=_took_turns(row, reference))


def _took_turns(row: Row, other: Row) -> bool:
    return bool(row.group) and row.group == other.group


def _on_gpu(row: Row) -> bool:
    """Whether it delivers there."""
    return bool(row.case.get("device", "cpu") != "cpu")


def _decodes(row: Row) -> bool:
    return row.case["source"] != "synthetic"


def _elsewhere(row: Row) -> bool:
    """Whether the GPU decodes: the processors then only wait for it."""
    return _on_gpu(row) and not _ours(row)


def contender(row: Row) -> str:
    """Who, what it reads, what decodes where that is not the loader's own, and where it delivers to if not to host
    memory."""
    if row.implementation == BARE:
        return "bare decode"
    words = [row.implementation, row.case["source"], row.case.get("loader", "")]
    return " ".join([*filter(None, words), *(["to GPU"] if _on_gpu(row) else [])])


def _case_text(case: Mapping[str, Any]) -> str:
    """What has to be done, whoever does it."""
    text = f"{case['workload']}, batch {case['batch_size']}, {case['threads']} threads"
    if "image_bytes" in case:
        text += (
            f"; {case['data']}: {case['image_bytes'] / 1000:.3g} kB, {case['image_pixels'] / 1000:.4g} kpx"
        )
    return text
