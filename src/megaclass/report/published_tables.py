"""Published tables in their own shape, with one's own numbers below each published line."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from megaclass.report.compared import ratio_text
from megaclass.report.document import Section
from megaclass.report.machines import Identity, Machine
from megaclass.report.matching import BATCH, Match, Matches, Variant, no_ratio_of
from megaclass.report.sources import Source
from megaclass.report.table import Cell, Column, Line, Table, text_table
from megaclass.report.tables import values_of
from megaclass.report.words import OURS, declared, digits, number, quotient_text, short, value_text
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
    matches = Matches(sources, report.name)
    source = ", ".join(filter(None, map(report.source.get, ("project", "document"))))
    tables = [_Writer(report, table, matches, machines).table() for table in report.tables]
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
    return next((note for name, note in told.items() if number(held.get(name)) is not None), "")


def ratio_to_published(found: _Measured, measure: str, reference: float) -> Ratio | None:
    """With the interval of the steps that the number is of; None where it is not of steps, or of one alone."""
    source = found.sources[-1]
    metric = declared(source.row.benchmark).metric(measure)
    if metric is None or not metric.statistic or len(found.sources) > 1 or len(source.samples_ms) < 2:
        return None
    samples, statistic = source.samples_ms, metric.statistic
    centre = fmean(samples) if statistic == "mean" else percentile(samples, float(statistic[1:]))
    low, high = (end / centre for end in source.step_interval(statistic))
    if metric.better == "higher":  # the longer a step, the fewer samples in a second
        low, high = 1 / high, 1 / low
    value = found.value / reference
    return Ratio(value, value * low, value * high)


@dataclass
class _Writer:
    report: published.Report
    about: published.Table
    matches: Matches
    machines: Mapping[Identity, Machine]
    names: dict[Variant, str] = field(default_factory=dict)  # of all that have a line in the table
    scaled: bool = False  # whether a number of one's own is not of the published case

    def table(self) -> Table:
        shown = [self._variants(row) for row in self.about.rows]
        self.names = _names({v for variants in shown for v in variants}, self.machines)
        self.label_keys = [self._label_key(place) for place in range(len(self.about.columns))]
        lines: list[Line] = []
        for row, variants in zip(self.about.rows, shown, strict=True):
            owner = Cell(f"published: {self.report.machines[row.machine].title}")
            lines.append(Line((owner, *(Cell(cell.text, cell.value) for cell in row.cells)), "published"))
            for variant in variants:
                lines += self._own(row, variant)
        heads = [Column("Machine", False)]
        heads += [Column(column.title, column.kind != "label") for column in self.about.columns]
        remarks = [_NONE] if not self.names else [_SCALED] if self.scaled else []
        return Table(self.about.title, heads, lines, remarks)

    def _variants(self, row: published.TableRow) -> list[Variant]:
        cases = [cell.case for cell in row.cells if cell.case and cell.over is None]
        return self.matches.variants(self.about.benchmark, cases)

    def _label_key(self, place: int) -> str:
        """The parameter that a column of labels states in every line, so that a scaled line can state its own."""
        if self.about.columns[place].kind != "label":
            return ""
        found = set[str]()
        for number_of, row in enumerate(self.about.rows):
            cases = [_with_device_batch(cell.case) for cell in row.cells if cell.case]
            told = {
                key
                for key in (cases[0] if cases else ())
                if all(_states(row.cells[place].text, case.get(key)) for case in cases)
            }
            found = told if number_of == 0 else found & told
        return sorted(found)[0] if found else ""

    def _own(self, row: published.TableRow, variant: Variant) -> list[Line]:
        """One's own numbers, and their ratios to the published ones where there are any."""
        name = self.names[variant]
        own, ratios = [Cell(name)], [Cell(f"ratio of {name} to published")]
        cases = self._ran(row, variant)
        for place, (cell, column) in enumerate(zip(row.cells, self.about.columns, strict=True)):
            if column.kind == "label":  # the published line above tells it, unless something else ran
                found, ratio = Cell(self._label(place, cell, cases)), Cell()
            else:
                found, ratio = self._cell(cell, column, variant)
            own.append(found)
            ratios.append(ratio)
        lines = [Line(tuple(own), "own")]
        if any(cell.text for cell in ratios[1:]):
            lines.append(Line(tuple(ratios), "ratio"))
        return lines

    def _ran(self, row: published.TableRow, variant: Variant) -> list[dict[str, Any]]:
        """The cases that were really measured for a line."""
        found = (self.matches.find(self.about.benchmark, c.case, variant) for c in row.cells if c.case)
        return [_with_device_batch(match.source.row.case) for match in found if match and match.source.ok]

    def _label(self, place: int, cell: published.Cell, cases: list[dict[str, Any]]) -> str:
        key = self.label_keys[place]
        values = {value_text(key, case[key]) for case in cases if key in case}
        same = len(values) != 1 or any(_states(cell.text, case.get(key)) for case in cases)
        return "" if same else values.pop()

    def _cell(self, cell: published.Cell, column: published.Column, variant: Variant) -> tuple[Cell, Cell]:
        match = self.matches.find(self.about.benchmark, cell.case, variant)
        if match is None:
            return Cell(), Cell()
        if cell.over is not None:
            return self._ratio_column(cell, column, match, variant), Cell()
        row = match.source.row
        if not match.source.ok:
            return Cell(row.status, None, match.sources, (f"{row.status}: {row.reason}",)), Cell()
        found = measured(match, column.measure, column.unit)
        if found is None:
            return Cell("not taken", None, match.sources), Cell()
        notes = (*match.notes, *found.notes)
        own = Cell(digits(found.value) + "*" * match.scaled, found.value, found.sources, notes)
        self.scaled |= match.scaled
        if match.scaled or not cell.value:
            return own, Cell()
        ratio = ratio_to_published(found, column.measure, cell.value)
        if ratio is not None:
            return own, Cell(ratio_text(ratio), ratio.value, found.sources)
        value = found.value / cell.value
        return own, Cell(quotient_text(value), value, found.sources, (_PLAIN,))

    def _ratio_column(
        self, cell: published.Cell, column: published.Column, match: Match, variant: Variant
    ) -> Cell:
        other = self.matches.find(self.about.benchmark, cell.case | (cell.over or {}), variant)
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


def _with_device_batch(case: Mapping[str, Any]) -> dict[str, Any]:
    batch = number(case.get("global_batch_size"))
    devices = (number(case.get("world_size")) or 1) * (number(case.get("simulate_ranks")) or 1)
    return dict(case) | ({"batch of a device": batch / devices} if batch else {})


def _states(text: str, value: Any) -> bool:
    """Whether a label is that value, as reports write it."""
    if (known := number(value)) is None:
        return isinstance(value, str) and text == value
    return text.replace(",", "") in (f"{known:g}", f"{known:.0f}", short(known))


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
