"""One's own rows beside one another, as tables and lines: a line a row, rows that took turns, scaling, and repeats."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, TypeAlias

from rich.console import Group

from megaclass.bench.case import Metric
from megaclass.report.console import ConsoleTable
from megaclass.report.document import Cell, Column, Line, Table, text_table
from megaclass.report.sources import Source
from megaclass.report.words import (
    OURS,
    case_text,
    changes,
    declared,
    differing,
    digits,
    effort,
    flat,
    key_of,
    name_of,
    read,
    scaled_down,
    value_text,
)
from megaclass.results.rows import Row
from megaclass.results.stats import Ratio, ratio_of_medians

# Settings that change how a training is run, and nothing of what comes out of it.
_RUN = ("run.", "data.workers")


def console_tables(rows: Iterable[Row]) -> Group:
    """The tables of rows for a console, one benchmark after another."""
    groups: dict[str, list[Source]] = {}
    for place, row in enumerate(rows, start=1):
        groups.setdefault(row.benchmark, []).append(Source(Path(), 0, row, place))
    return Group(*(ConsoleTable(table) for group in groups.values() for table in own_tables(group)))


def own_tables(sources: Sequence[Source], machine: str = "") -> list[Table]:
    """All tables of the rows of one benchmark on one machine, whose name, if any, stands in their titles."""
    where = f": {machine}" if machine else ""
    title = declared(sources[0].row.benchmark).title
    return [*_repeats_tables(sources, f"{title}, repeated{where}"), _rows_table(f"{title}{where}", sources)]


def case_columns(sources: Sequence[Source], but: str = "") -> tuple[list[Column], list[list[Cell]], list[str]]:
    """What differs between the cases: heads, and the cells of each row; and as remarks what is the same. but: a key to
    leave out."""
    named = len({source.row.implementation for source in sources}) > 1
    aside = {but, *effort()}
    cases = [{key: value for key, value in flat(source.row.case).items() if key not in aside} for source in sources]
    keys = differing(cases)
    names = map(name_of, keys)
    heads = ["Implementation"] * named + [name if "." in name else name[:1].upper() + name[1:] for name in names]
    cells = [
        [Cell(source.row.implementation)] * named
        + [Cell(value_text(key, case[key]) if key in case else "") for key in keys]
        for source, case in zip(sources, cases, strict=True)
    ]
    same = case_text(cases[0], [key for key in cases[0] if key not in keys])
    return [Column(head, False) for head in heads], cells, [f"The same in all: {same}."] if same else []


def number_cell(source: Source, value: float | None) -> Cell:
    return Cell() if value is None else Cell(digits(value), value, (source,))


# -- a line a row ---------------------------------------------------------------------------------------

# Columns that no benchmark declares, as every row may have them.
_MORE = ["Ours, times as fast", "by CPU time", "Steps", "CPU wait, %"]


def _rows_table(title: str, sources: Sequence[Source]) -> Table:
    """A line for each row, whatever its status: what differs, the metrics, and what rows that took turns say; without
    columns that no row fills."""
    metrics = declared(sources[0].row.benchmark).metrics
    labels, cases, remarks = case_columns(sources)
    heads = [*(metric.title for metric in metrics), *_MORE]
    found = []
    for source in sources:
        cells = [Cell()] * len(heads)
        if source.ok:
            cells = [number_cell(source, read(metric, source.row)) for metric in metrics]
            cells += _more(source, sources)
        _mark(source, cells)
        found.append(cells)
    places = [place for place in range(len(heads)) if any(cells[place].text for cells in found)]
    lines = [Line([*case, *(cells[place] for place in places)]) for case, cells in zip(cases, found, strict=True)]
    return Table(title, [*labels, *(Column(heads[place]) for place in places)], lines, remarks)


def _mark(source: Source, cells: list[Cell]) -> None:
    """A row without a number says why, and the first number of one that a suite scaled down that it is one."""
    row, place = source.row, next((place for place, cell in enumerate(cells) if cell.text), None)
    if place is None:
        notes = () if source.ok else (f"{row.status}: {row.reason}",)
        cells[0] = Cell(row.status, None, (source,), notes)
    elif scaled_down(row):
        first = cells[place]
        note = f"scaled down to fit from the case of suite {row.suite}: {changes(row.asked, row.case)}"
        cells[place] = Cell(f"{first.text}*", first.value, first.sources, (*first.notes, note))


def _more(source: Source, sources: Sequence[Source]) -> list[Cell]:
    first, row = reference_of(source, sources), source.row
    cells = []
    for field in ("samples_ms", "cpu_ms"):
        if first and (ratio := times_as_fast(first.row, row, field)):
            note = f"how many times as fast row {first.number} ({first.row.implementation}) is, by medians"
            cells.append(Cell(str(ratio), ratio.value, (first, source), (note,)))
        else:
            cells.append(Cell())
    count, waited = len(row.samples_ms), row.cpu_wait_percent
    cells.append(Cell(f"{count:,}", count, (source,)) if count else Cell())
    return [*cells, Cell() if waited is None else Cell(f"{waited:.1f}", waited, (source,), source.busy)]


# -- rows that took turns -------------------------------------------------------------------------------


def reference_of(source: Source, sources: Iterable[Source]) -> Source | None:
    """The first of our rows that a row took turns with; None where it is that one, or where there is none."""
    mine = source.row.group
    ours = (o for o in sources if o.ok and o.row.group == mine != "" and o.row.implementation == OURS)
    first = next(ours, source)
    return None if first is source else first


def times_as_fast(mine: Row, other: Row, field: str = "samples_ms") -> Ratio | None:
    """How many times as fast as ``other`` ``mine`` is, by median steps; rounds (or steps) that were measured side by
    side are drawn together. None: no times in one of them. field: ``cpu_ms`` compares the time of processors."""
    theirs, ours = _round_medians(other, field), _round_medians(mine, field)
    if len(theirs) != len(ours) or len(theirs) < 2:
        theirs, ours = getattr(other, field), getattr(mine, field)
    if not theirs or not ours or not all((*theirs, *ours)):
        return None
    together = bool(mine.group) and mine.group == other.group and len(theirs) == len(ours)
    return ratio_of_medians(theirs, ours, paired=together)


def _round_medians(row: Row, field: str) -> list[float]:
    """The median step of every timed epoch, ms: what takes turns does so epoch by epoch."""
    steps, rounds = getattr(row, field), len(row.epochs)
    if not rounds or len(steps) % rounds:
        return []
    size = len(steps) // rounds
    return [median(steps[i : i + size]) for i in range(0, len(steps), size or 1)]


# -- repeats --------------------------------------------------------------------------------------------

_Statistic: TypeAlias = Callable[[list[float]], float | None]
_STATISTICS: dict[str, _Statistic] = {
    "Average": fmean,
    "Standard deviation": lambda values: stdev(values) if len(values) > 1 else None,
    "Minimum": min,
    "Maximum": max,
}


def repeats(sources: Iterable[Source]) -> list[list[Source]]:
    """The rows of each case that differ in what makes a repeat (a seed) alone; of a seed that was measured again the
    latest. The case that was measured last is the last."""
    found: dict[str, dict[str, Source]] = {}
    for source in sorted(sources, key=lambda source: source.age):
        row = source.row
        what = declared(row.benchmark).repeats
        case = {key: value for key, value in row.case.items() if key != what}
        key = key_of([case | {"settings": trained_settings(case)}, row.implementation, source.machine])
        before = found.pop(key, {})  # to the end
        found[key] = before | {key_of(row.case.get(what)): source}
    return [sorted(group.values(), key=lambda source: source.number) for group in found.values()]


def trained_settings(case: Mapping[str, Any]) -> Any:
    """The settings that change what is trained."""
    settings = case.get("settings") or {}
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if not key.startswith(_RUN)}


def _repeats_tables(sources: Sequence[Source], title: str) -> list[Table]:
    """What repeats say together, in the shape of published tables of seeds."""
    what = declared(sources[0].row.benchmark)
    metric, seconds = what.leading, what.metric("seconds")
    groups = repeats(source for source in sources if source.ok) if what.repeats else []
    if not groups:
        return []
    labels, cases, remarks = case_columns([group[-1] for group in groups], but=what.repeats)
    heads = [*labels, *map(Column, (f"{name_of(what.repeats)}s".capitalize(), *_STATISTICS))]
    heads += [Column(f"Mean {seconds.title[:1].lower()}{seconds.title[1:]}")] if seconds else []
    lines = []
    for group, case in zip(groups, cases, strict=True):
        cells = [_over(group, metric, len, "d"), *(_over(group, metric, one) for one in _STATISTICS.values())]
        cells += [_over(group, seconds, fmean, ",.4g")] if seconds else []
        lines.append(Line([*case, *cells]))
    remark = f"{metric.title}. Standard deviation: of a sample (n - 1). Of what was measured again the latest counts."
    return [Table(title, heads, lines, [remark, *remarks])]


def values_of(group: Iterable[Source], metric: Metric) -> list[tuple[Source, float]]:
    return [(source, value) for source in group if (value := read(metric, source.row)) is not None]


def _over(group: Sequence[Source], metric: Metric, statistic: _Statistic, places: str = ",.3f") -> Cell:
    found = values_of(group, metric)
    value = statistic([value for _, value in found]) if found else None
    sources = tuple(source for source, _ in found)
    return Cell() if value is None else Cell(format(value, places), value, sources)


def plan_tables(plan: Sequence[Any]) -> Group:
    """The cases of a suite: those to be measured, and how they were scaled down; then what is left out, by reason."""
    measured, left_out = [], []
    for one in plan:
        asked = one.original_case
        if one.skip:
            left_out.append(((asked or one.case).text, one.skip))
        else:
            scaled = changes(asked.parameters(), one.case.parameters()) if asked else ""
            measured.append((one.case.text, scaled))
    tables = (
        text_table("To be measured", ("case", "scaled down from what was published"), measured),
        text_table("Left out", ("case", "reason"), left_out),
    )
    return Group(*(ConsoleTable(table) for table in tables if table.lines))
