"""Which of one's own rows measured the case of a published cell."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaclass.report.page.machines import Identity
from megaclass.report.page.measures import Measured, measured
from megaclass.report.page.seeds import settings_of, trainings
from megaclass.report.page.sources import Source
from megaclass.report.page.words import changes, key_of, number, scaled_down

# What a published case may leave open and a row of one's own decides: each gets a line of its own.
_OPEN = ("engine", "storage", "device", "data")
BATCH = "batch of a device"  # that too, where a report does not state it
# What a report that does not name it implies: no other setting was changed, no rank was only played.
_IMPLIED: dict[str, Any] = {"simulate_ranks": 1, "sample_rate": 1.0}


@dataclass(frozen=True)
class Variant:
    """Whose numbers may stand in one line: those of one machine, one implementation, one way to run it."""

    machine: Identity
    implementation: str
    open: tuple[tuple[str, str], ...]


def variant_of(source: Source, published: Mapping[str, Any]) -> Variant:
    case = source.row.case
    way = [(key, str(case[key])) for key in _OPEN if key in case]
    if _states_no_batch(source.row.benchmark, published):
        batch = _per_device(source.row.asked or case)
        way.append((BATCH, "batch not recorded" if batch is None else f"batch {batch:,.6g} a device"))
    return Variant(source.machine, source.row.implementation, tuple(way))


def _states_no_batch(benchmark: str, published: Mapping[str, Any]) -> bool:
    return benchmark == "train" and "global_batch_size" not in published


@dataclass(frozen=True)
class Match:
    """The rows of a cell: the one that stands for it last, or all seeds. others: how many more measured the case."""

    sources: tuple[Source, ...]
    others: int
    seeds: bool = False

    @property
    def source(self) -> Source:
        return self.sources[-1]

    @property
    def scaled(self) -> bool:
        """Whether it is not the published case that was measured."""
        return any(scaled_down(source.row) for source in self.sources)

    @property
    def told(self) -> str:
        """How many rows there are besides, for a note."""
        if not self.others:
            return ""
        if self.seeds:
            return f"{self.others} more rows of this case are earlier ones of a seed, or of another training"
        return f"{self.others + 1} rows measured this case; the latest is shown"

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
        self._suite = suite
        self._by_benchmark: dict[str, list[Source]] = {}
        for source in sources:
            self._by_benchmark.setdefault(source.row.benchmark, []).append(source)
        self._found: dict[str, dict[Variant, list[Source]]] = {}

    def variants(self, benchmark: str, cases: Sequence[Mapping[str, Any]]) -> list[Variant]:
        """Those that measured at least one of the cases."""
        return list(dict.fromkeys(variant for case in cases for variant in self._all(benchmark, case)))

    def find(self, benchmark: str, case: Mapping[str, Any], variant: Variant) -> Match | None:
        """The row that stands for the case: one with a number, of the suite itself, as published, the latest."""
        found = sorted(self._all(benchmark, case).get(variant, []), key=self._rank)
        if not found:
            return None
        if benchmark == "stability":
            done = [source for source in found if source.ok]
            seeds = trainings(done)[-1] if done else found[-1:]
            return Match(tuple(seeds), len(done) - len(seeds) if done else 0, seeds=True)
        return Match((found[-1],), sum(source.ok for source in found[:-1]))

    def _all(self, benchmark: str, case: Mapping[str, Any]) -> Mapping[Variant, list[Source]]:
        """The rows of the case, each once looked up."""
        key = key_of({"of": benchmark, "case": case})
        if key not in self._found:
            found: dict[Variant, list[Source]] = {}
            for source in self._by_benchmark.get(benchmark, []):
                if self._is_of(case, source):
                    found.setdefault(variant_of(source, case), []).append(source)
            self._found[key] = found
        return self._found[key]

    def _is_of(self, case: Mapping[str, Any], source: Source) -> bool:
        row = source.row
        if _states_no_batch(row.benchmark, case) and row.suite not in ("", self._suite):
            return False  # another report's batch
        return _measures(case, row.asked or row.case)

    def _rank(self, source: Source) -> tuple[bool, bool, bool, str, int]:
        row = source.row
        return source.ok, row.suite == self._suite, not scaled_down(row), str(row.measured_at), source.number


def _measures(published: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether the case of a row is the published one: in all that this names, and in what it implies."""
    named = all(key in mine and mine[key] == value for key, value in published.items() if key != "settings")
    implied = all(mine.get(key, value) == value for key, value in _IMPLIED.items() if key not in published)
    return named and implied and _settings(mine) == _settings(published)


def _settings(case: Mapping[str, Any]) -> Any:
    """Of a training to its end, what changes what is trained; of a speed, all of them."""
    return settings_of(case) if "epochs_trained" in case else case.get("settings") or {}


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
