"""Which of one's own rows measured the case of a published cell."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaclass.report.page.machines import Identity
from megaclass.report.page.measures import Measured, measured
from megaclass.report.page.sources import Source
from megaclass.report.page.words import changes, number, scaled_down

# What a published case may leave open and a row of one's own decides: each gets a line of its own.
_OPEN = ("engine", "storage", "device")


@dataclass(frozen=True)
class Variant:
    """Whose numbers may stand in one line: those of one machine, one implementation, one way to run it."""

    machine: Identity
    implementation: str
    open: tuple[tuple[str, Any], ...]


def variant_of(source: Source) -> Variant:
    case = source.row.case
    way = tuple((key, str(case[key])) for key in _OPEN if key in case)
    return Variant(source.machine, source.row.implementation, way)


@dataclass(frozen=True)
class Match:
    """The rows of a cell: the one that stands for it last, or all seeds. others: how many more measured the same."""

    sources: tuple[Source, ...]
    others: int

    @property
    def source(self) -> Source:
        return self.sources[-1]

    @property
    def scaled(self) -> bool:
        """Whether it is not the published case that was measured."""
        return any(scaled_down(source.row) for source in self.sources)

    @property
    def changes(self) -> str:
        """In words, for a note; empty where nothing was changed."""
        row = self.source.row
        changed = changes(row.asked, row.case)
        if not changed:
            return ""
        return (
            f"scaled down to fit: {changed}; not the published case"
            if self.scaled
            else f"as published, but: {changed}"
        )


class Matches:
    """Finds rows by case, as a suite of that name asked for them or as anybody measured them."""

    def __init__(self, sources: Iterable[Source], suite: str) -> None:
        self._sources = list(sources)
        self._suite = suite

    def variants(self, benchmark: str, cases: Sequence[Mapping[str, Any]]) -> list[Variant]:
        """Those that measured at least one of the cases."""
        found = [variant_of(s) for case in cases for s in self._all(benchmark, case)]
        return list(dict.fromkeys(found))

    def find(self, benchmark: str, case: Mapping[str, Any], variant: Variant) -> Match | None:
        """The row that stands for the case: one with a number, of the suite itself, as published, the latest."""
        found = [source for source in self._all(benchmark, case) if variant_of(source) == variant]
        if not found:
            return None
        found.sort(key=self._rank)
        if benchmark == "stability":
            return Match(tuple(source for source in found if source.ok) or (found[-1],), 0)
        return Match((found[-1],), sum(source.ok for source in found[:-1]))

    def _all(self, benchmark: str, case: Mapping[str, Any]) -> list[Source]:
        return [
            source
            for source in self._sources
            if source.row.benchmark == benchmark and _within(case, source.row.asked or source.row.case)
        ]

    def _rank(self, source: Source) -> tuple[bool, bool, bool, str, int]:
        row = source.row
        return source.ok, row.suite == self._suite, not scaled_down(row), str(row.measured_at), source.number


def _within(case: Mapping[str, Any], larger: Mapping[str, Any]) -> bool:
    return all(key in larger and larger[key] == value for key, value in case.items())


def quotient(base: Match, other: Match, measure: str, inverse: bool) -> tuple[Measured | None, str]:
    """A ratio of two of one's own cells, or why there is none: scaled down, they may be the same case."""
    one, two = base.source.row.case, other.source.row.case
    for match in (base, other):
        row = match.source.row
        if not match.source.ok:
            return None, f"no ratio: {row.status}"
        if row.asked and row.asked.get("world_size", 1) != row.case.get("world_size", 1):
            return None, "no ratio: measured on fewer devices than published"
    if one.get("world_size", 1) != two.get("world_size", 1) and _per_device(one) != _per_device(two):
        return None, "no ratio: the batch of a device differs"
    if base.scaled and one == two:
        return None, "no ratio: scaled down, both cases are the same"
    mine, reference = (measured(match.sources, measure, "") for match in (base, other))
    if mine is None or reference is None or not mine.value or not reference.value:
        return None, ""
    value = reference.value / mine.value if inverse else mine.value / reference.value
    return Measured(value, tuple(dict.fromkeys((*mine.sources, *reference.sources)))), ""


def _per_device(case: Mapping[str, Any]) -> float | None:
    batch, devices = number(case.get("global_batch_size")), number(case.get("world_size", 1))
    return batch / devices if batch and devices else None
