"""Published tables in their own shape, with one's own numbers below each published line."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from megaclass.report.compared import ratio_text
from megaclass.report.document import Section
from megaclass.report.machines import Identity, Machine
from megaclass.report.matching import BATCH, Match, Variant, matches_of, no_ratio_of
from megaclass.report.sources import Source
from megaclass.report.table import Cell, Column, Line, Table, text_table
from megaclass.report.tables import values_of
from megaclass.report.words import OURS, declared, digits, quotient_text, value_text
from megaclass.results import published
from megaclass.results.stats import Ratio, percentile

_NONE = "No row of this report measured a case of this table."
_SCALED = "* scaled down to fit this machine: not comparable with the published number. Labels in its line: what ran."
_UNITS = {"GB": 1 / 1024, "h": 1 / 3600, "%": 100.0}  # of MiB, seconds and shares
_PLAIN = "a plain quotient: the number is not one of steps, and has no interval"
# Of repeats (seeds), by the end of a measure's name.
_OVER_REPEATS: dict[str, Callable[[list[float]], float]] = {"": fmean, "std": stdev, "min": min, "max": max}


def published_section(
    report: published.Report, sources: Sequence[Source], machines: Mapping[Identity, Machine]
) -> Section:
    source = ", ".join(filter(None, map(report.source.get, ("project", "document"))))
    tables = [_table(report, table, sources, machines) for table in report.tables]
    tables.sort(key=lambda table: table.remarks == [_NONE])  # those with numbers of both first
    tables += [
        text_table(f"Published server spec: {machine.title}", ("Key", "Value"), machine.spec, "published")
        for machine in report.machines.values()
    ]
    intro = (
        f"Published by {source}. Below each published line stands what was measured here of the same case, and, where "
        "that was measured as published, the ratio of the two with the interval in which resampling the measured steps "
        "puts it 95 times out of 100. Published numbers came without their spread."
    )
    return Section(
        f"Beside {report.name}: {report.title}", texts=[intro], tables=tables, bullets=report.notes
    )


@dataclass(frozen=True)
class _Measured:
    """A value in the unit of its column, the rows that it is of, and what has to be said about it."""

    value: float
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()


def measured(match: Match, measure: str, unit: str) -> _Measured | None:
    """The number of a published column from the rows of its case."""
    benchmark = declared(match.source.row.benchmark)
    name, _, statistic = measure.rpartition("_") if benchmark.metric(measure) is None else (measure, "", "")
    metric = benchmark.metric(name)
    if metric is None or statistic not in _OVER_REPEATS:
        return None
    found = values_of(match.sources, metric)
    values = [value for _, value in found]
    if len(values) < (2 if statistic == "std" else 1):
        return None
    sources = tuple(source for source, _ in found)
    notes = [_kind_of_memory(match.source)] if measure == "gpu_memory_mb" else []
    if match.repeated:
        notes.append(f"of {len(values)} {benchmark.repeats}{'s' if len(values) > 1 else ''}")
    value = _UNITS.get(unit, 1.0) * _OVER_REPEATS[statistic](values)
    busy = next((source.busy for source in sources if source.busy), ())
    return _Measured(value, sources, (*filter(None, notes), *busy))


def _kind_of_memory(source: Source) -> str:
    """What to say of a memory that is not the one that a driver reports."""
    told = {
        "driver": "",
        "reserved": "memory reserved by PyTorch: the driver told none",
        "allocated": "memory allocated by PyTorch: the driver told none",
        "process": "memory of the process: measured on a CPU",
    }
    held = source.row.memory_mb
    return next((note for name, note in told.items() if held.get(name) is not None), "")


def ratio_to_published(found: _Measured, measure: str, reference: float) -> Ratio | None:
    """With the interval of the steps that the number is of; None where it is not of steps, or of one alone."""
    source = found.sources[-1]
    metric = declared(source.row.benchmark).metric(measure)
    if metric is None or not metric.statistic or len(found.sources) > 1 or len(source.row.samples_ms) < 2:
        return None
    samples, statistic = source.row.samples_ms, metric.statistic
    centre = fmean(samples) if statistic == "mean" else percentile(samples, float(statistic[1:]))
    low, high = (end / centre for end in source.step_interval(statistic))
    if metric.better == "higher":  # the longer a step, the fewer samples in a second
        low, high = 1 / high, 1 / low
    value = found.value / reference
    return Ratio(value, value * low, value * high)


@dataclass(frozen=True)
class _Entry:
    """A published cell, and what was measured of its case and, for a ratio, of the other one, by variant."""

    cell: published.Cell
    column: published.Column
    matches: Mapping[Variant, Match]
    others: Mapping[Variant, Match]


def _table(
    report: published.Report,
    about: published.Table,
    sources: Sequence[Source],
    machines: Mapping[Identity, Machine],
) -> Table:
    def found(case: Mapping[str, Any]) -> Mapping[Variant, Match]:
        return matches_of(report.name, about.benchmark, case, sources) if case else {}

    entries = [
        [
            _Entry(cell, column, found(cell.case), found(cell.case | cell.over if cell.over else {}))
            for cell, column in zip(row, about.columns, strict=True)
        ]
        for row in about.rows
    ]
    shown = [
        dict.fromkeys(variant for entry in line if entry.cell.over is None for variant in entry.matches)
        for line in entries
    ]
    names = _names({variant for variants in shown for variant in variants}, machines)
    lines: list[Line] = []
    for row, line, variants in zip(about.rows, entries, shown, strict=True):
        owner = Cell(f"published: {report.machines[row[0].machine].title}")
        lines.append(Line((owner, *(Cell(cell.text, cell.value) for cell in row)), "published"))
        for variant in variants:
            lines += _own_lines(line, variant, names[variant])
    heads = [Column(column.title, column.kind != "label") for column in about.columns]
    own = [cell for line in lines if line.kind == "own" for cell in line.cells[1:]]
    scaled = [_SCALED] if any(cell.text.endswith("*") for cell in own) else []
    return Table(about.title, [Column("Machine", False), *heads], lines, scaled if names else [_NONE])


def _own_lines(entries: Sequence[_Entry], variant: Variant, name: str) -> list[Line]:
    """One's own numbers, and their ratios to the published ones where there are any."""
    own, ratios = [Cell(name)], [Cell(f"ratio of {name} to published")]
    for entry in entries:
        match, ratio = entry.matches.get(variant), Cell()
        if entry.column.kind == "label":
            cell = Cell(_label(entry.column.measure, entries, variant))
        elif match is None:
            cell = Cell()
        elif entry.cell.over is not None:
            cell = _of_own(entry.column, match, entry.others.get(variant))
        else:
            cell, ratio = _number(entry, match)
        own.append(cell)
        ratios.append(ratio)
    lines = [Line(tuple(own), "own")]
    return [*lines, Line(tuple(ratios), "ratio")] if any(cell.text for cell in ratios[1:]) else lines


def _label(key: str, entries: Sequence[_Entry], variant: Variant) -> str:
    """What ran, where that is one thing and another than the published line above says."""
    wanted, ran = set[str](), set[str]()
    for entry in entries:
        match = entry.matches.get(variant)
        if match and match.source.ok and key in match.source.row.case:
            wanted.add(value_text(key, entry.cell.case.get(key)))
            ran.add(value_text(key, match.source.row.case[key]))
    return ran.pop() if len(ran) == 1 and ran != wanted else ""


def _number(entry: _Entry, match: Match) -> tuple[Cell, Cell]:
    """One's own number of a published one, and the ratio of the two."""
    row, column, reference = match.source.row, entry.column, entry.cell.value
    if not match.source.ok:
        return Cell(row.status, None, match.sources, (f"{row.status}: {row.reason}",)), Cell()
    found = measured(match, column.measure, column.unit)
    if found is None:
        return Cell("not taken", None, match.sources), Cell()
    text = digits(found.value) + "*" * match.scaled
    own = Cell(text, found.value, found.sources, (*match.notes, *found.notes))
    if match.scaled or not reference:
        return own, Cell()
    value, ratio = found.value / reference, ratio_to_published(found, column.measure, reference)
    if ratio is not None:
        return own, Cell(ratio_text(ratio), value, found.sources)
    return own, Cell(quotient_text(value), value, found.sources, (_PLAIN,))


def _of_own(column: published.Column, match: Match, other: Match | None) -> Cell:
    """The ratio of two of one's own numbers, where the published column has one of two published."""
    if other is None:
        return Cell()
    if why := no_ratio_of(match, other):
        return Cell("–", None, (), (why,))
    mine, reference = (measured(one, column.measure, "") for one in (match, other))
    if mine is None or reference is None or not mine.value or not reference.value:
        return Cell()
    value = reference.value / mine.value if column.inverse else mine.value / reference.value
    scaled = match.scaled or other.scaled
    notes = ("of numbers that were scaled down to fit; not the published case",) if scaled else ()
    sources = tuple(dict.fromkeys((*mine.sources, *reference.sources)))
    return Cell(quotient_text(value) + "*" * scaled, value, sources, (*notes, *match.source.busy))


def _names(variants: Iterable[Variant], machines: Mapping[Identity, Machine]) -> dict[Variant, str]:
    """Of each the machine, and what tells its line from others of it."""
    found = list(variants)
    names = {}
    for variant in found:
        group = [other for other in found if other.machine == variant.machine]
        words = [machines[variant.machine].name]
        if variant.implementation != OURS or len({other.implementation for other in group}) > 1:
            words.append(variant.implementation)
        shared = set.intersection(*(set(other.open) for other in group))
        words += [value for key, value in variant.open if key == BATCH or (key, value) not in shared]
        names[variant] = ", ".join(words)
    return names
