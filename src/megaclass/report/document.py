"""The report before it is written: sections of text, tables and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from megaclass.report.sources import Source
from megaclass.report.table import Table


@dataclass(frozen=True)
class Series:
    """A curve. published: somebody's numbers, drawn apart from one's own. ideal: no measurement at all."""

    label: str
    points: Sequence[tuple[float, float]]
    published: bool = False
    ideal: bool = False


@dataclass(frozen=True)
class Picture:
    """Curves over one axis."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]

    @property
    def alt(self) -> str:
        """What it shows, for who cannot see it."""
        told = []
        for series in (one for one in self.series if not one.ideal):
            (x0, y0), (x1, y1) = series.points[0], series.points[-1]
            told.append(f"{series.label}: {y0:,.4g} at {x0:,.6g} to {y1:,.4g} at {x1:,.6g}.")
        return f"{self.title}: {self.y_label} against {self.x_label}. {' '.join(told)}"


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
    """sources: every row that a number may link to, by their numbers."""

    title: str
    sections: Sequence[Section]
    sources: Sequence[Source]

    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    def pictures(self) -> list[Picture]:
        return [picture for section in self.sections for picture in section.pictures]
