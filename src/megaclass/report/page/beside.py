"""Published tables in their own shape, with one's own numbers below each published line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megaclass.published import Cell as PublishedCell
from megaclass.published import Column as PublishedColumn
from megaclass.published import Report, TableRow
from megaclass.published import Table as PublishedTable
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
from megaclass.report.page.matching import Match, Matches, Variant, quotient
from megaclass.report.page.measures import measured, ratio_to_published
from megaclass.report.page.sources import Source
from megaclass.report.page.words import digits

_NONE = "No row of this report measured a case of this table."


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
    several: set[Variant] = field(default_factory=set)  # all that have a line in the table

    def table(self) -> Table:
        shown = [self._variants(row) for row in self.published.rows]
        self.several = {v for variants in shown for v in variants}
        lines: list[Line] = []
        for row, variants in zip(self.published.rows, shown, strict=True):
            texts = [cell.text for cell in row.cells]
            title = self.report.machines[row.machine].title
            lines.append(Line((Cell(f"published: {title}"), *self._published(row, texts)), "published"))
            for variant in variants:
                lines += self._own(row, variant)
        heads = [Column("Machine", False)]
        heads += [Column(column.title, column.kind != "label") for column in self.published.columns]
        remarks = [] if self.several else [_NONE]
        return Table(self.published.title, heads, lines, self.notes, remarks)

    def _published(self, row: TableRow, texts: list[str]) -> list[Cell]:
        return [Cell(text, value=cell.value) for text, cell in zip(texts, row.cells, strict=True)]

    def _variants(self, row: TableRow) -> list[Variant]:
        cases = [cell.case for cell in row.cells if cell.case and cell.over is None]
        return self.matches.variants(self.published.benchmark, cases)

    def _own(self, row: TableRow, variant: Variant) -> list[Line]:
        """One's own numbers, and their ratios to the published ones where there are any."""
        name = self._name(variant)
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
        if column.kind == "label":
            return Cell(cell.text), Cell()
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
        others = f"{match.others + 1} rows measured this case; the latest is shown" if match.others else ""
        text = digits(found.value) + ("*" if match.scaled else "")
        own = Cell(text, found.sources, self.notes.add(match.changes, found.note, others), found.value)
        if match.scaled or not cell.value:
            return own, Cell()
        ratio = ratio_to_published(found, column.measure, cell.value)
        if ratio is not None:
            return own, Cell(str(ratio), found.sources, (), ratio.value)
        plain = self.notes.add("a plain quotient: the number is not one of steps, and has no interval")
        return own, Cell(f"{found.value / cell.value:.2f}", found.sources, plain, found.value / cell.value)

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
        text = f"{found.value:.2f}" + ("*" if scaled else "")
        return Cell(text, found.sources, self.notes.add(note), found.value)

    def _name(self, variant: Variant) -> str:
        """The machine, and what tells this line from others of it."""
        words = [self.machines[variant.machine].name]
        same = [other for other in self.several if other.machine == variant.machine]
        if variant.implementation != "megaclass" or len({v.implementation for v in same}) > 1:
            words.append(variant.implementation)
        for key, value in variant.open:
            if len({dict(other.open).get(key) for other in same}) > 1:
                words.append(value)
        return ", ".join(words)
