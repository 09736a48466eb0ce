"""Published tables in their own shape, with one's own numbers below each published line."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from megaclass.report.page.document import (
    Block,
    Bullets,
    Cell,
    Column,
    Line,
    Notes,
    Section,
    Table,
    columns,
    line,
)
from megaclass.report.page.machines import Identity, Machine
from megaclass.report.page.matching import BATCH, Match, Matches, Variant, quotient
from megaclass.report.page.measures import busy, measured, ratio_text, ratio_to_published
from megaclass.report.page.sources import Source
from megaclass.report.page.words import digits, quotient_text
from megaclass.results.published import Cell as PublishedCell
from megaclass.results.published import Column as PublishedColumn
from megaclass.results.published import Report, TableRow
from megaclass.results.published import Table as PublishedTable

_NONE = "No row of this report measured a case of this table."
_SCALED = "* scaled down to fit this machine: not comparable with the published number."


def published_section(
    report: Report, sources: Sequence[Source], machines: Mapping[Identity, Machine]
) -> Section:
    matches = Matches(sources, report.name)
    source = ", ".join(filter(None, map(report.source.get, ("project", "document"))))
    blocks: list[Block] = [
        f"Published by {source}. Below each published line stands what was measured here of the same case, and, where "
        "that was measured as published, the ratio of the two with the interval in which resampling the measured steps "
        "puts it 95 times out of 100. Published numbers came without their spread."
    ]
    tables: list[Table] = [_Writer(report, table, matches, machines).table() for table in report.tables]
    tables.sort(key=lambda table: table.remarks == [_NONE])  # those with numbers of both first
    blocks += tables
    for machine in report.machines.values():
        lines = [line(pair, "published") for pair in machine.spec]
        blocks.append(Table(f"Published server spec: {machine.title}", columns(("Key", "Value")), lines))
    blocks.append(Bullets(report.notes))
    return Section(f"Beside {report.name}: {report.title}", blocks)


@dataclass
class _Writer:
    report: Report
    published: PublishedTable
    matches: Matches
    machines: Mapping[Identity, Machine]
    notes: Notes = field(default_factory=Notes)
    names: dict[Variant, str] = field(default_factory=dict)  # of all that have a line in the table
    scaled: bool = False  # whether a number of one's own is not of the published case

    def table(self) -> Table:
        shown = [self._variants(row) for row in self.published.rows]
        self.names = _names({v for variants in shown for v in variants}, self.machines)
        lines: list[Line] = []
        for row, variants in zip(self.published.rows, shown, strict=True):
            texts = [cell.text for cell in row.cells]
            title = self.report.machines[row.machine].title
            lines.append(Line((Cell(f"published: {title}"), *self._published(row, texts)), "published"))
            for variant in variants:
                lines += self._own(row, variant)
        heads = [Column("Machine", False)]
        heads += [Column(column.title, column.kind != "label") for column in self.published.columns]
        remarks = [_NONE] if not self.names else [_SCALED] if self.scaled else []
        return Table(self.published.title, heads, lines, self.notes, remarks)

    def _published(self, row: TableRow, texts: list[str]) -> list[Cell]:
        return [Cell(text, value=cell.value) for text, cell in zip(texts, row.cells, strict=True)]

    def _variants(self, row: TableRow) -> list[Variant]:
        cases = [cell.case for cell in row.cells if cell.case and cell.over is None]
        return self.matches.variants(self.published.benchmark, cases)

    def _own(self, row: TableRow, variant: Variant) -> list[Line]:
        """One's own numbers, and their ratios to the published ones where there are any."""
        name = self.names[variant]
        own, ratios = [Cell(name)], [Cell(f"ratio of {name} to published")]
        for cell, column in zip(row.cells, self.published.columns, strict=True):
            found, ratio = self._cell(cell, column, variant)
            own.append(found)
            ratios.append(ratio)
        lines = [Line(tuple(own), "own")]
        if any(cell.text for cell in ratios[1:]):
            lines.append(Line(tuple(ratios), "ratio"))
        return lines

    def _cell(self, cell: PublishedCell, column: PublishedColumn, variant: Variant) -> tuple[Cell, Cell]:
        if column.kind == "label":  # the published line above tells it, of the published case
            return Cell(), Cell()
        match = self.matches.find(self.published.benchmark, cell.case, variant)
        if match is None:
            return Cell(), Cell()
        if cell.over is not None:
            return self._ratio_column(cell, column, match, variant), Cell()
        row = match.source.row
        if not match.source.ok:
            return Cell(row.status, match.sources, self.notes.add(f"{row.status}: {row.reason}")), Cell()
        found = measured(match.sources, column.measure, column.unit)
        if found is None:
            return Cell("not taken", match.sources), Cell()
        text = digits(found.value) + ("*" if match.scaled else "")
        notes = self.notes.add(match.changes, found.note, match.told, busy(found.sources))
        own = Cell(text, found.sources, notes, found.value)
        if match.scaled or not cell.value:
            self.scaled |= match.scaled
            return own, Cell()
        ratio = ratio_to_published(found, column.measure, cell.value)
        if ratio is not None:
            return own, Cell(ratio_text(ratio), found.sources, (), ratio.value)
        plain = self.notes.add("a plain quotient: the number is not one of steps, and has no interval")
        return own, Cell(
            quotient_text(found.value / cell.value), found.sources, plain, found.value / cell.value
        )

    def _ratio_column(
        self, cell: PublishedCell, column: PublishedColumn, match: Match, variant: Variant
    ) -> Cell:
        case = cell.case | (cell.over or {})
        other = self.matches.find(self.published.benchmark, case, variant)
        if other is None:
            return Cell()
        found, why = quotient(match, other, column.measure, column.inverse)
        if found is None:
            return Cell("–", (), self.notes.add(why))
        scaled = match.scaled or other.scaled
        note = "of numbers that were scaled down to fit; not the published case" if scaled else ""
        text = quotient_text(found.value) + ("*" if scaled else "")
        return Cell(text, found.sources, self.notes.add(note, busy(found.sources)), found.value)


def _names(variants: Iterable[Variant], machines: Mapping[Identity, Machine]) -> dict[Variant, str]:
    """Of each the machine, and what tells its line from others of it."""
    groups: dict[Identity, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(variant.machine, []).append(variant)
    names = {}
    for machine, group in groups.items():
        implementations = {variant.implementation for variant in group}
        values: dict[str, set[str]] = {}
        for key, value in (pair for variant in group for pair in variant.open):
            values.setdefault(key, set()).add(value)
        told = {
            key
            for key, found in values.items()
            if key == BATCH or len(found) > 1 or not all(key in dict(variant.open) for variant in group)
        }
        for variant in group:
            words = [machines[machine].name]
            if variant.implementation != "megaclass" or len(implementations) > 1:
                words.append(variant.implementation)
            names[variant] = ", ".join([*words, *(value for key, value in variant.open if key in told)])
    return names
