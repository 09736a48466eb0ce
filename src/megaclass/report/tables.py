"""One's own tables, derived from what a benchmark declares: a line a row, scaling, and repeats."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeAlias

from rich.console import Group

from megaclass.bench.case import Metric
from megaclass.report.compared import (
    ratio_text,
    reference_of,
    repeats,
    scaling_groups,
    speedup,
    spread_percent,
    times_as_fast,
)
from megaclass.report.sources import Source
from megaclass.report.table import Cell, Column, Line, Table, to_rich, without_empty
from megaclass.report.words import (
    case_text,
    changes,
    chosen,
    declared,
    differing,
    digits,
    effort,
    key_of,
    name_of,
    read,
    scaled_down,
    unfolded,
    value_text,
)
from megaclass.results.rows import Row


def console_tables(rows: Iterable[Row]) -> Group:
    """The tables of rows for a console, one benchmark after another."""
    groups: dict[str, list[Source]] = {}
    for place, row in enumerate(rows, start=1):
        groups.setdefault(row.benchmark, []).append(Source(Path(), 0, row, place))
    return Group(*(to_rich(table) for group in groups.values() for table in own_tables(group)))


def own_tables(sources: Sequence[Source], machine: str = "") -> list[Table]:
    """All tables of the rows of one benchmark on one machine, whose name stands in their titles. Without it, for a
    console: of each row what the benchmark declares."""
    where = f": {machine}" if machine else ""
    title = declared(sources[0].row.benchmark).title
    rows = rows_table(f"{title}{where}", sources, brief=not machine)
    return [*_repeats_tables(sources, f"{title}, repeated{where}"), rows]


def case_columns(
    sources: Sequence[Source], *, brief: bool = False, but: str = ""
) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """What differs between the cases: heads, and the cells of each row; and as remarks what is the same. brief: no
    more than what somebody chose, and what else tells them apart. but: a key to leave out."""
    named = len({source.row.implementation for source in sources}) > 1
    cases = unfolded([source.row.case for source in sources])
    every = [{key: case[key] for key in case if key not in {but, *effort()}} for case in cases]
    differ = keys = differing(every)
    if brief:
        keys = [key for key in differ if chosen(sources[0].row, key)]
        for key in differ:
            if key not in keys and _distinct(sources, cases, [*keys, key]) > _distinct(sources, cases, keys):
                keys.append(key)
    heads = ["Implementation"] * named + [name_of(key)[:1].upper() + name_of(key)[1:] for key in keys]
    cells = [
        [Cell(source.row.implementation)] * named
        + [Cell(value_text(key, case[key]) if key in case else "") for key in keys]
        for source, case in zip(sources, cases, strict=True)
    ]
    same = case_text(every[0], [key for key in dict.fromkeys(itertools.chain(*every)) if key not in differ])
    return [Column(head, False) for head in heads], cells, [f"The same in all: {same}."] if same else []


def _distinct(sources: Sequence[Source], cases: Sequence[dict[str, Any]], keys: Sequence[str]) -> int:
    told = ([s.row.implementation, *map(case.get, keys)] for s, case in zip(sources, cases, strict=True))
    return len(set(map(key_of, told)))


def number_cell(source: Source, value: float | None, notes: tuple[str, ...] = ()) -> Cell:
    return Cell() if value is None else Cell(digits(value), value, (source,), notes)


# -- a line a row ---------------------------------------------------------------------------------------


def rows_table(title: str, sources: Sequence[Source], *, brief: bool = False) -> Table:
    """A line for each row, whatever its status: what differs, the metrics, and what rows that took turns say."""
    metrics = declared(sources[0].row.benchmark).metrics
    labels, cases, remarks = case_columns(sources, brief=brief)
    firsts = [
        {source: group[0] for group in scaling_groups(sources, weak=weak) for source in group}
        for weak in (True, False)
    ]
    heads = [*(metric.title for metric in metrics), "Weak scaling", "Strong scaling"]
    heads += [] if brief else _MORE
    lines = []
    for source, case in zip(sources, cases, strict=True):
        reasons = () if source.ok else (f"{source.row.status}: {source.row.reason}",)
        without = [Cell(source.row.status, None, (source,), reasons), *[Cell()] * (len(heads) - 1)]
        cells = without
        if source.ok:
            cells = [number_cell(source, read(metric, source.row)) for metric in metrics]
            cells += [_scaling(source, first.get(source, source)) for first in firsts]
            cells += [] if brief else _more(source, sources)
            cells = _marked(source, cells) if any(cell.text for cell in cells) else without
        lines.append(Line((*case, *cells)))
    table = Table(title, [*labels, *map(Column, heads)], lines, remarks)
    return without_empty(table, [heads[0], *(metric.title for metric in metrics if metric.always)])


def _scaling(source: Source, first: Source) -> Cell:
    """Throughput over that of the fewest devices that did the same."""
    if first is source:
        return Cell()
    ratio, cases = speedup(source, first), (source.row.case, first.row.case)
    more, fewer = (case["world_size"] for case in cases)
    kept = "global batch" if len({case["global_batch_size"] for case in cases}) == 1 else "batch of a device"
    note = f"throughput over that of {fewer} devices at the same {kept}, and of how much is ideal"
    percent = 100 * ratio.value * fewer / more
    return Cell(f"{ratio_text(ratio)}, {percent:.1f}%", ratio.value, (source, first), (note,))


# Columns that no benchmark declares, as every row may have them.
_MORE = ["Spread of rounds, %", "Ours, times as fast", "by CPU time", "Steps", "CPU wait, %"]


def _more(source: Source, sources: Sequence[Source]) -> list[Cell]:
    first, cells = reference_of(source, sources), []
    for field in ("samples_ms", "cpu_ms"):
        if first and (ratio := times_as_fast(first.row, source.row, field)):
            note = f"how many times as fast row {first.number} ({first.row.implementation}) is, by medians"
            cells.append(Cell(ratio_text(ratio), ratio.value, (first, source), (note,)))
        else:
            cells.append(Cell())
    count, waited = len(source.row.samples_ms), source.row.cpu_wait_percent
    cells.append(Cell(f"{count:,}", count, (source,)) if count else Cell())
    cells.append(Cell() if waited is None else Cell(f"{waited:.1f}", waited, (source,), source.busy))
    return [number_cell(source, spread_percent(source.row)), *cells]


def _marked(source: Source, cells: list[Cell]) -> list[Cell]:
    """The first number of a row that a suite scaled down says so."""
    row = source.row
    place = next((place for place, cell in enumerate(cells) if cell.text), None)
    if place is not None and scaled_down(row):
        note = f"scaled down to fit from the case of suite {row.suite}: {changes(row.asked, row.case)}"
        first = cells[place]
        cells[place] = Cell(f"{first.text}*", first.value, first.sources, (*first.notes, note))
    return cells


# -- repeats --------------------------------------------------------------------------------------------

_Statistic: TypeAlias = Callable[[list[float]], float | None]
_STATISTICS: dict[str, _Statistic] = {
    "Average": fmean,
    "Standard deviation": lambda values: stdev(values) if len(values) > 1 else None,
    "Minimum": min,
    "Maximum": max,
}


def _repeats_tables(sources: Sequence[Source], title: str) -> list[Table]:
    """What repeats say together, in the shape of published tables of seeds."""
    what = declared(sources[0].row.benchmark)
    metric = what.metric(what.headline)
    groups = repeats(source for source in sources if source.ok) if what.repeats else []
    if not groups or metric is None:
        return []
    labels, cases, remarks = case_columns([group[-1] for group in groups], but=what.repeats)
    seconds = what.metric("seconds")
    heads = [*labels, *map(Column, (f"{name_of(what.repeats)}s".capitalize(), *_STATISTICS))]
    heads += [Column(f"Mean {seconds.title[:1].lower()}{seconds.title[1:]}")] if seconds else []
    lines = []
    for group, case in zip(groups, cases, strict=True):
        cells = [_over(group, metric, len, "d"), *(_over(group, metric, one) for one in _STATISTICS.values())]
        cells += [_over(group, seconds, fmean, ",.4g")] if seconds else []
        lines.append(Line((*case, *cells)))
    remark = f"{metric.title}. Standard deviation: of a sample (n - 1). Of what was measured again the latest counts."
    return [Table(title, heads, lines, [remark, *remarks])]


def values_of(group: Iterable[Source], metric: Metric) -> list[tuple[Source, float]]:
    return [(source, value) for source in group if (value := read(metric, source.row)) is not None]


def _over(group: Sequence[Source], metric: Metric, statistic: _Statistic, places: str = ",.3f") -> Cell:
    found = values_of(group, metric)
    value = statistic([value for _, value in found]) if found else None
    sources = tuple(source for source, _ in found)
    return Cell() if value is None else Cell(format(value, places), value, sources)
