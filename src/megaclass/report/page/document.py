"""The report before it is written: sections of text, tables and pictures, which three writers render alike.

Text is plain text: escaping is the writers' affair, each in its own language.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from megaclass.report.page.sources import Source


@dataclass(frozen=True)
class Cell:
    """sources: the rows that the number is from; the first is what it links to.
    notes: the places (from 1) in the table's notes of what has to be said about it. value: unrounded."""

    text: str = ""
    sources: tuple[Source, ...] = ()
    notes: tuple[int, ...] = ()
    value: float | None = None


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


@dataclass
class Notes:
    """The notes of a table: the same text is one note."""

    _places: dict[str, int] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        return list(self._places)

    def add(self, *texts: str) -> tuple[int, ...]:
        return tuple(self._places.setdefault(text, len(self._places) + 1) for text in texts if text)


@dataclass(frozen=True)
class Table:
    """remarks: sentences about the whole table, between its title and its lines."""

    title: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    notes: Notes = field(default_factory=Notes)
    remarks: Sequence[str] = ()

    def __post_init__(self) -> None:
        assert all(len(line.cells) == len(self.columns) for line in self.lines), self.title


@dataclass(frozen=True)
class Series:
    """A curve. published: somebody's numbers, drawn apart from one's own. ideal: no measurement at all."""

    label: str
    points: Sequence[tuple[float, float]]
    published: bool = False
    ideal: bool = False


@dataclass(frozen=True)
class Picture:
    """Curves over one axis. The axes are logarithmic to base 2 or 10, or linear (0)."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_base: int = 0
    y_base: int = 0
    remark: str = ""

    @property
    def alt(self) -> str:
        """What it shows, for who cannot see it."""
        curves = " ".join(_told(series) for series in self.series if not series.ideal)
        return f"{self.title}: {self.y_label} against {self.x_label}. {curves}"


def _told(series: Series) -> str:
    (x0, y0), (x1, y1) = series.points[0], series.points[-1]
    return f"{series.label}: {y0:,.4g} at {x0:,.6g} to {y1:,.4g} at {x1:,.6g}."


@dataclass(frozen=True)
class Headline:
    """A number to begin with. detail: of what. machine: where. basis: versions, and of how many samples."""

    number: str
    unit: str
    detail: str
    machine: str
    basis: str
    source: Source


@dataclass(frozen=True)
class Headlines:
    items: Sequence[Headline]


@dataclass(frozen=True)
class Bullets:
    texts: Sequence[str]


Block: TypeAlias = str | Bullets | Table | Picture | Headlines


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """sources: every row that a number may link to, by their numbers."""

    title: str
    sections: Sequence[Section]
    sources: Sequence[Source]

    def blocks(self) -> Iterator[Block]:
        for section in self.sections:
            yield from section.blocks

    def tables(self) -> list[Table]:
        return [block for block in self.blocks() if isinstance(block, Table)]

    def pictures(self) -> list[Picture]:
        return [block for block in self.blocks() if isinstance(block, Picture)]


def line(cells: Iterable[Cell | str], kind: str = "own") -> Line:
    """A line of cells, where a string is a cell of that text."""
    return Line(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in cells), kind)


def columns(labels: Iterable[str], numbers: Iterable[str] = ()) -> list[Column]:
    return [Column(title, False) for title in labels] + [Column(title) for title in numbers]
