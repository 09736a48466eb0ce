"""One's own tables, derived from what a benchmark declares: a line a row, scaling, and repeats."""

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
    changes,
    declared,
    digits,
    key_of,
    name_of,
    number,
    read,
    scaled_down,
    split_case,
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
    sources: Sequence[Source], *, brief: bool = False
) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """What differs between the cases: heads, and the cells of each row; and as remarks what is the same. brief: no
    more than tells them apart, and what somebody chose."""
    named = len({source.row.implementation for source in sources}) > 1
    cases = unfolded([source.row.case for source in sources])
    keys, same = split_case(cases)
    if brief:
        keys = _telling(sources, cases, keys)
    heads = ["Implementation"] * named + [name_of(key)[:1].upper() + name_of(key)[1:] for key in keys]
    cells = [
        [Cell(source.row.implementation)] * named
        + [Cell(value_text(key, case[key]) if key in case else "") for key in keys]
        for source, case in zip(sources, cases, strict=True)
    ]
    remarks = [f"The same in all: {same}."] if same else []
    return [Column(head, False) for head in heads], cells, remarks


def _telling(sources: Sequence[Source], cases: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    fields = declared(sources[0].row.benchmark).fields
    chosen = [key for key in keys if fields.get(key, {}).get("sweeps") or key not in sources[0].row.case]

    def distinct(kept: Sequence[str]) -> int:
        told = (
            [source.row.implementation, *map(case.get, kept)]
            for source, case in zip(sources, cases, strict=True)
        )
        return len(set(map(key_of, told)))

    for key in keys:
        if key not in chosen and distinct([*chosen, key]) > distinct(chosen):
            chosen.append(key)
    return chosen


def number_cell(source: Source, value: float | None, notes: tuple[str, ...] = ()) -> Cell:
    return Cell() if value is None else Cell(digits(value), value, (source,), notes)


# -- a line a row ---------------------------------------------------------------------------------------


def rows_table(title: str, sources: Sequence[Source], *, brief: bool = False) -> Table:
    """A line for each row, whatever its status: what differs, the metrics, and what rows that took turns say."""
    metrics = declared(sources[0].row.benchmark).metrics
    labels, cases, remarks = case_columns(sources, brief=brief)
    measures = [(metric.title, _read(metric)) for metric in metrics]
    measures += [
        ("Weak scaling", _scaling(sources, weak=True)),
        ("Strong scaling", _scaling(sources, weak=False)),
    ]
    measures += [] if brief else _beside(sources)
    lines = []
    for source, case in zip(sources, cases, strict=True):
        if source.ok:
            cells = _marked(source, [read_cell(source) for _, read_cell in measures])
        else:
            reason = (f"{source.row.status}: {source.row.reason}",)
            cells = [Cell(source.row.status, None, (source,), reason), *[Cell()] * (len(measures) - 1)]
        lines.append(Line((*case, *cells)))
    table = Table(title, [*labels, *(Column(name) for name, _ in measures)], lines, remarks)
    always = [metric.title for metric in metrics if metric.always]
    return without_empty(table, [metrics[0].title, *always])


def _read(metric: Metric) -> Callable[[Source], Cell]:
    return lambda source: number_cell(source, read(metric, source.row))


def _scaling(sources: Sequence[Source], *, weak: bool) -> Callable[[Source], Cell]:
    """Throughput over that of the fewest devices that did the same."""
    kept = "batch of a device" if weak else "global batch"
    firsts = {source: group[0] for group in scaling_groups(sources, weak=weak) for source in group}

    def cell(source: Source) -> Cell:
        first = firsts.get(source, source)
        if first is source:
            return Cell()
        ratio, devices = speedup(source, first), [one.row.case["world_size"] for one in (source, first)]
        note = f"throughput over that of {devices[1]} devices at the same {kept}, and of how much is ideal"
        percent = 100 * ratio.value * devices[1] / devices[0]
        return Cell(f"{ratio_text(ratio)}, {percent:.1f}%", ratio.value, (source, first), (note,))

    return cell


def _beside(sources: Sequence[Source]) -> list[tuple[str, Callable[[Source], Cell]]]:
    """Columns that no benchmark declares, as every row may have them."""
    rows = {id(source.row): source for source in sources}

    def times(field: str) -> Callable[[Source], Cell]:
        def cell(source: Source) -> Cell:
            mine = reference_of(source.row, [other.row for other in sources])
            ratio = times_as_fast(mine, source.row, field) if mine else None
            if mine is None or ratio is None:
                return Cell()
            first = rows[id(mine)]
            note = f"how many times as fast row {first.number} ({mine.implementation}) is, by medians"
            return Cell(ratio_text(ratio), ratio.value, (first, source), (note,))

        return cell

    def steps(source: Source) -> Cell:
        count = len(source.samples_ms)
        return Cell(f"{count:,}", count, (source,)) if count else Cell()

    def waited(source: Source) -> Cell:
        value = number(source.row.cpu_wait_percent)
        return Cell() if value is None else Cell(f"{value:.1f}", value, (source,), source.busy)

    return [
        ("Spread of rounds, %", lambda source: number_cell(source, spread_percent(source.row))),
        ("Ours, times as fast", times("samples_ms")),
        ("by CPU time", times("cpu_ms")),
        ("Steps", steps),
        ("CPU wait, %", waited),
    ]


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
    lasts = [group[-1] for group in groups]
    labels, cases, remarks = case_columns(lasts)
    kept = [
        place for place, label in enumerate(labels) if label.title.lower() != name_of(what.repeats).lower()
    ]
    seconds = what.metric("seconds")
    counted = f"{name_of(what.repeats)}s".capitalize()
    heads = [*(labels[place] for place in kept), *map(Column, (counted, *_STATISTICS))]
    heads += [Column(f"Mean {seconds.title[:1].lower()}{seconds.title[1:]}")] if seconds else []
    lines = []
    for group, case in zip(groups, cases, strict=True):
        cells = [_over(group, metric, len, "d"), *(_over(group, metric, one) for one in _STATISTICS.values())]
        cells += [_over(group, seconds, fmean, ",.4g")] if seconds else []
        lines.append(Line((*(case[place] for place in kept), *cells)))
    remark = f"{metric.title}. Standard deviation: of a sample (n - 1). Of what was measured again the latest counts."
    return [Table(title, heads, lines, [remark, *remarks])]


def values_of(group: Iterable[Source], metric: Metric) -> list[tuple[Source, float]]:
    return [(source, value) for source in group if (value := read(metric, source.row)) is not None]


def _over(group: Sequence[Source], metric: Metric, statistic: _Statistic, places: str = ",.3f") -> Cell:
    found = values_of(group, metric)
    value = statistic([value for _, value in found]) if found else None
    sources = tuple(source for source, _ in found)
    return Cell() if value is None else Cell(format(value, places), value, sources)
