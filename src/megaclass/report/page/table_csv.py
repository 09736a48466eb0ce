"""The numbers of the document as CSV, one a line, each with the raw row that it is from."""

import csv
import re
from io import StringIO
from pathlib import Path

from megaclass.report.page.document import Cell, Document, Line, Table

HEADER = ("section", "table", "line", "kind", "labels", "column", "text", "value", "notes", "source")


def render_csv(document: Document, directory: Path) -> str:
    """directory: where it will lie; ``source`` is FILE:LINE as seen from there, or several with spaces between."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for section in document.sections:
        for block in section.blocks:
            if isinstance(block, Table):
                above: Line | None = None
                for number, line in enumerate(block.lines, start=1):
                    above = line if line.kind == "published" else above
                    for row in _rows(block, line, above or line, directory):
                        writer.writerow(
                            map(_safe, (section.title, block.title, str(number), line.kind, *row))
                        )
    return text.getvalue()


def _rows(table: Table, line: Line, above: Line, directory: Path) -> list[tuple[str, ...]]:
    """An entry for each cell of a number; where a table has none, for each cell but the first. above: the line that
    has the labels that this one leaves empty."""
    numeric = [place for place, column in enumerate(table.columns) if column.numeric]
    places = numeric or list(range(1, len(table.columns)))
    texts = [cell.text or other.text for cell, other in zip(line.cells, above.cells, strict=True)]
    labels = "; ".join(
        f"{column.title} {text}"
        for place, (column, text) in enumerate(zip(table.columns, texts, strict=True))
        if place not in places and text
    )
    return [
        (labels, table.columns[place].title, *_entries(table, line.cells[place], directory))
        for place in places
        if line.cells[place].text
    ]


def _entries(table: Table, cell: Cell, directory: Path) -> tuple[str, str, str, str]:
    value = "" if cell.value is None else repr(cell.value)
    notes = "; ".join(table.notes.texts[place - 1] for place in cell.notes)
    sources = " ".join(f"{source.file_from(directory)}:{source.line}" for source in cell.sources)
    return cell.text, value, notes, sources


def _safe(text: str) -> str:
    """A spreadsheet takes what begins so for a formula; a number or a lone sign is none."""
    harmless = text in ("-", "+") or re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and not harmless else text
