"""What a report is before it is written: sections of text, tables and pictures. Text is plain text: escaping is the
affair of what writes it, each in its own language."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megaclass.report.sources import Source

_BAD = ("oom", "timeout", "failed", "skipped", "slower", "no longer measured")


@dataclass(frozen=True)
class Cell:
    text: str = ""
    value: float | None = None  # unrounded
    sources: tuple[Source, ...] = ()  # the rows that the number is from; the first is what it links to
    notes: tuple[str, ...] = ()  # what has to be said about it

    @property
    def bad(self) -> bool:
        """Whether it says that something went wrong."""
        return self.text.partition(";")[0] in _BAD and bool(self.sources or self.notes)


@dataclass(frozen=True)
class Line:
    """kind: ``own``, ``published`` (somebody's numbers), or ``ratio`` (of the two). Labels that an own or a ratio line
    leaves empty are those of the published line above it."""

    cells: Sequence[Cell]
    kind: str = "own"


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    remarks: Sequence[str] = ()  # about the whole table, between its title and its lines

    def __post_init__(self) -> None:
        assert all(len(line.cells) == len(self.columns) for line in self.lines), self.title

    @property
    def notes(self) -> list[str]:
        """Those of all cells, each once, in order: a cell shows its notes by their places in it, from 1."""
        return list(dict.fromkeys(note for line in self.lines for cell in line.cells for note in cell.notes))


def text_table(title: str, heads: Sequence[str | Column], lines: Iterable[Sequence[Any]], kind: str = "own") -> Table:
    """A table of words alone. heads: a text heads words, which stand on the left."""
    columns = [head if isinstance(head, Column) else Column(head, False) for head in heads]
    return Table(title, columns, [Line([Cell(str(word)) for word in line], kind) for line in lines])


@dataclass(frozen=True)
class Series:
    """A curve."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: str  # ``own``, ``published`` (somebody's numbers, drawn apart) or ``ideal`` (no measurement at all)
    colour: str = ""


@dataclass(frozen=True)
class Picture:
    """Curves over one axis."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]

    @property
    def legend(self) -> list[tuple[str, str, str]]:
        """Label, kind and colour of each curve; all ideal lines are one entry."""
        return list(dict.fromkeys((one.label, one.kind, one.colour) for one in self.series))

    @property
    def alt(self) -> str:
        """What it shows, for who cannot see it."""
        told = []
        for series in (one for one in self.series if one.kind != "ideal"):
            (x0, y0), (x1, y1) = series.points[0], series.points[-1]
            told.append(f"{series.label}: {y0:,.4g} at {x0:,.6g} to {y1:,.4g} at {x1:,.6g}.")
        return f"{self.title}: {self.y_label} against {self.x_label}. {' '.join(told)}"


@dataclass(frozen=True)
class Headline:
    """A number to begin with."""

    number: str
    unit: str
    detail: str  # of what
    machine: str
    basis: str  # versions, and of how many samples
    source: Source


@dataclass(frozen=True)
class Section:
    """What it has stands in this order."""

    title: str
    headlines: Sequence[Headline] = ()
    texts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    bullets: Sequence[str] = ()


@dataclass(frozen=True)
class Document:
    title: str
    sections: Sequence[Section]
    sources: Sequence[Source]  # every row that a number may link to, by their numbers
