"""One table for everything that is reported, and one renderer for each place: console, Markdown, CSV (HTML is the
template's, templates/page.html). Text is plain text: escaping is the renderers' affair, each in its own language."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from megaclass.report.sources import Source

_RAISED = str.maketrans("0123456789,", "⁰¹²³⁴⁵⁶⁷⁸⁹˒")
_BAD = ("oom", "timeout", "failed", "skipped", "slower", "no longer measured")
CSV_HEADER = ("section", "table", "line", "kind", "labels", "column", "text", "value", "notes", "source")


@dataclass(frozen=True)
class Cell:
    """sources: the rows that the number is from; the first is what it links to. notes: what has to be said about it.
    value: unrounded."""

    text: str = ""
    value: float | None = None
    sources: tuple["Source", ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bad(self) -> bool:
        """Whether it says that something went wrong."""
        return self.text.partition(";")[0] in _BAD and bool(self.sources or self.notes)


@dataclass(frozen=True)
class Line:
    """kind: ``own``, ``published`` (somebody's numbers), or ``ratio`` (of the two). Labels that an own or a ratio line
    leaves empty are those of the published line above it."""

    cells: tuple[Cell, ...]
    kind: str = "own"


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """remarks: sentences about the whole table, between its title and its lines."""

    title: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    remarks: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        assert all(len(line.cells) == len(self.columns) for line in self.lines), self.title

    @property
    def notes(self) -> list[str]:
        """Those of all cells, each once, in order: a cell shows its notes by their places in it, from 1."""
        return list(dict.fromkeys(note for line in self.lines for cell in line.cells for note in cell.notes))

    def column(self, title: str) -> list[Cell]:
        """The cells below a head."""
        place = [column.title for column in self.columns].index(title)
        return [line.cells[place] for line in self.lines]


def text_table(title: str, heads: Sequence[str], lines: Iterable[Sequence[str]], kind: str = "own") -> Table:
    """A table of words alone."""
    made = [Line(tuple(map(Cell, line)), kind) for line in lines]
    return Table(title, [Column(head, False) for head in heads], made)


def without_empty(table: Table, keep: Iterable[str] = ()) -> Table:
    """The table without columns that no line fills, but for those in ``keep``."""
    kept = [
        place
        for place, column in enumerate(table.columns)
        if column.title in (*keep,) or any(line.cells[place].text for line in table.lines)
    ]
    lines = [Line(tuple(line.cells[place] for place in kept), line.kind) for line in table.lines]
    return Table(table.title, [table.columns[place] for place in kept], lines, table.remarks)


def printable(text: str) -> str:
    """A name that comes from elsewhere, on one line and without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


# -- console --------------------------------------------------------------------------------------------


def to_rich(table: Table) -> "_Shown":
    """For a console: heads wrap, numbers do not, columns that find no room stand in a further part below with the
    labels repeated, and what has to be said follows."""
    return _Shown(table)


@dataclass(frozen=True)
class _Shown:
    """Learns the width of the console when it is shown."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table, notes = self.table, self.table.notes
        if table.title:
            yield Text(printable(table.title), "bold")
        least, whole = zip(*(_widths(table, place) for place in range(len(table.columns))), strict=True)
        for places in _parts(table, least, options.max_width):
            made = RichTable(
                show_header=any(column.title for column in table.columns), box=None, padding=(0, 1, 0, 0)
            )
            room = options.max_width - sum(least[place] + 1 for place in places)
            for place in places:
                column, more = table.columns[place], max(0, min(whole[place] - least[place], room))
                justify: Literal["right", "left"] = "right" if column.numeric else "left"
                made.add_column(
                    escape(printable(column.title)),
                    justify=justify,
                    width=least[place] + more,
                    overflow="fold",
                )
                room -= more
            for line in table.lines:
                made.add_row(*(_console_cell(line.cells[place], notes) for place in places))
            yield made
        below = [*table.remarks, *(f"{place}. {note}" for place, note in enumerate(notes, start=1))]
        yield from (Text(printable(text), "dim") for text in below)


def _parts(table: Table, least: Sequence[int], width: int) -> list[list[int]]:
    """The places of columns that fit beside one another: labels, which lead, and as many others as find room."""
    labels = list(
        itertools.takewhile(lambda place: not table.columns[place].numeric, range(len(table.columns)))
    )
    parts = [list(labels)]
    for place in range(len(labels), len(table.columns)):
        if sum(least[one] + 1 for one in (*parts[-1], place)) > width and len(parts[-1]) > len(labels):
            parts.append(list(labels))
        parts[-1].append(place)
    return parts


def _widths(table: Table, place: int) -> tuple[int, int]:
    """The width below which a column would break a number, or a word of its head; and that of all in one line."""
    column, cells = table.columns[place], [line.cells[place] for line in table.lines]
    whole = [len(cell.text) + 2 * len(cell.notes) for cell in cells] or [1]
    words = whole if column.numeric else [len(word) for cell in cells for word in cell.text.split()] or [1]
    head = [len(word) for word in column.title.split()] or [1]
    return max(min(max(words), 30), min(max(head), 14)), max(*whole, len(column.title))


def _console_cell(cell: Cell, notes: list[str]) -> Text:
    places = ",".join(str(notes.index(note) + 1) for note in cell.notes)
    text = Text(printable(cell.text), "bold red" if cell.bad else "")
    return text.append(places.translate(_RAISED), "dim")


# -- Markdown -------------------------------------------------------------------------------------------


def to_markdown(table: Table, target: Callable[["Source"], str]) -> Iterator[str]:
    """Lines of Markdown, as code hosts show it. target: the address of a row."""
    notes = table.notes
    yield f"### {markdown_text(table.title)}"
    yield ""
    for remark in table.remarks:
        yield from (markdown_text(remark), "")
    yield _bars(markdown_text(column.title) for column in table.columns)
    yield _bars("---:" if column.numeric else "---" for column in table.columns)
    for line in table.lines:
        yield _bars(_markdown_cell(cell, notes, target) for cell in line.cells)
    if notes:
        yield ""
        yield from (f"{place}. {markdown_text(text)}" for place, text in enumerate(notes, start=1))


def _bars(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(cell: Cell, notes: list[str], target: Callable[["Source"], str]) -> str:
    text = markdown_text(cell.text)
    if cell.sources and text:
        first, *more = cell.sources
        text = f"[{text}]({target(first)})"
        text += "".join(f" [{place}]({target(source)})" for place, source in enumerate(more, start=2))
    places = ",".join(str(notes.index(note) + 1) for note in cell.notes)
    return text + (f"<sup>{places}</sup>" if places else "")


def markdown_text(text: str) -> str:
    """One line in which no character means anything but itself."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text)
    return re.sub(r"^([-+#=]|\d+(?=[.)]))", r"\\\1", text) if not re.match(r"\d+[.)]\S", text) else text


# -- CSV ------------------------------------------------------------------------------------------------


def to_csv(section: str, table: Table, where: Callable[["Source"], str]) -> Iterator[list[str]]:
    """A line for each cell of a number, or, where a table has none, for each cell but the first."""
    numeric = [place for place, column in enumerate(table.columns) if column.numeric]
    places = numeric or list(range(1, len(table.columns)))
    above: Line | None = None
    for number, line in enumerate(table.lines, start=1):
        above = line if line.kind == "published" else above
        labels = "; ".join(
            f"{column.title} {cell.text or other.text}"
            for place, (column, cell, other) in enumerate(
                zip(table.columns, line.cells, (above or line).cells, strict=True)
            )
            if place not in places and (cell.text or other.text)
        )
        for place in places:
            cell = line.cells[place]
            if cell.text:
                value = "" if cell.value is None else repr(cell.value)
                said = "; ".join(cell.notes), " ".join(map(where, cell.sources))
                entry = (section, table.title, str(number), line.kind, labels, table.columns[place].title)
                yield [no_formula(text) for text in (*entry, cell.text, value, *said)]


def no_formula(text: str) -> str:
    """A spreadsheet takes what begins so for a formula; a number or a lone sign is none."""
    harmless = text in ("-", "+") or re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and not harmless else text
