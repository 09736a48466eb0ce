"""Tables that are all text: title, head and lines; for the console, and as Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table


@dataclass(frozen=True)
class TextTable:
    """``words``: how many of the first columns are words, which stand to the left."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    words: int = 1


def console(sheets: Iterable[TextTable]) -> Group:
    tables = []
    for sheet in sheets:
        table = Table(
            title=sheet.title, title_justify="left", title_style="bold", box=None, padding=(0, 0, 0, 1)
        )
        for place, name in enumerate(sheet.head):
            table.add_column(name, justify="left" if place < sheet.words else "right")
        for line in sheet.lines:
            table.add_row(*line)
        tables.append(table)
    return Group(*tables)


def markdown(sheet: TextTable) -> str:
    rules = ["---" if place < sheet.words else "---:" for place in range(len(sheet.head))]
    lines = [sheet.head, rules, *sheet.lines]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines])


def number(value: float) -> str:
    """Three digits that count, all of those before the point."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
