"""Which of one's own rows measured the case of a published cell."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaclass.report.compared import repeats, settings_of
from megaclass.report.machines import Identity
from megaclass.report.sources import Source
from megaclass.report.words import changes, declared, key_of, number, scaled_down

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


def variant_of(source: Source, case: Mapping[str, Any]) -> Variant:
    """case: the published one."""
    row = source.row
    way = [(key, str(row.case[key])) for key in _OPEN if key in row.case]
    if _states_no_batch(row.benchmark, case):
        batch = _per_device(row.asked or row.case)
        way.append((BATCH, "batch not recorded" if batch is None else f"batch {batch:,.6g} a device"))
    return Variant(source.machine, row.implementation, tuple(way))


def _states_no_batch(benchmark: str, case: Mapping[str, Any]) -> bool:
    return benchmark == "train" and "global_batch_size" not in case


@dataclass(frozen=True)
class Match:
    """The rows of a cell: the one that stands for it last, or all repeats. others: how many more measured the case."""

    sources: tuple[Source, ...]
    others: int
    repeated: bool = False

    @property
    def source(self) -> Source:
        return self.sources[-1]

    @property
    def scaled(self) -> bool:
        """Whether it is not the published case that was measured."""
        return any(scaled_down(source.row) for source in self.sources)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed of the published case, and how many rows there are besides."""
        row, found = self.source.row, []
        if changed := changes(row.asked, row.case):
            scaled = f"scaled down to fit: {changed}; not the published case"
            found.append(scaled if self.scaled else f"as published, but: {changed}")
        if self.others and self.repeated:
            found.append(
                f"{self.others} more rows of this case are earlier ones of a seed, or of another training"
            )
        elif self.others:
            found.append(f"{self.others + 1} rows measured this case; the latest is shown")
        return tuple(found)


class Matches:
    """Finds rows by case, as a suite of that name asked for them or as anybody measured them."""

    def __init__(self, sources: Iterable[Source], suite: str) -> None:
        self._suite = suite
        self._sources = list(sources)
        self._found: dict[str, dict[Variant, list[Source]]] = {}

    def variants(self, benchmark: str, cases: Sequence[Mapping[str, Any]]) -> list[Variant]:
        """Those that measured at least one of the cases."""
        return list(dict.fromkeys(variant for case in cases for variant in self._all(benchmark, case)))

    def find(self, benchmark: str, case: Mapping[str, Any], variant: Variant) -> Match | None:
        """The row that stands for the case: one with a number, of the suite itself, as published, the latest."""
        found = sorted(self._all(benchmark, case).get(variant, []), key=self._rank)
        if not found:
            return None
        if declared(benchmark).repeats:
            done = [source for source in found if source.ok]
            seeds = repeats(done)[-1] if done else found[-1:]
            return Match(tuple(seeds), len(done) - len(seeds) if done else 0, repeated=True)
        return Match((found[-1],), sum(source.ok for source in found[:-1]))

    def _all(self, benchmark: str, case: Mapping[str, Any]) -> Mapping[Variant, list[Source]]:
        """The rows of the case, each once looked up."""
        key = key_of([benchmark, case])
        if key not in self._found:
            found: dict[Variant, list[Source]] = {}
            for source in self._sources:
                if source.row.benchmark == benchmark and self._is_of(case, source):
                    found.setdefault(variant_of(source, case), []).append(source)
            self._found[key] = found
        return self._found[key]

    def _is_of(self, case: Mapping[str, Any], source: Source) -> bool:
        row = source.row
        if _states_no_batch(row.benchmark, case) and row.suite not in ("", self._suite):
            return False  # another report's batch
        return _measures(case, row.asked or row.case)

    def _rank(self, source: Source) -> tuple[Any, ...]:
        row = source.row
        return source.ok, row.suite == self._suite, not scaled_down(row), source.age


def _measures(case: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether the case of a row is the published one: in all that this names, and in what it implies."""
    named = all(key in mine and mine[key] == value for key, value in case.items() if key != "settings")
    implied = all(mine.get(key, value) == value for key, value in _IMPLIED.items() if key not in case)
    return named and implied and _settings(mine) == _settings(case)


def _settings(case: Mapping[str, Any]) -> Any:
    """Of a training to its end, what changes what is trained; of a speed, all of them."""
    return settings_of(case) if "epochs_trained" in case else case.get("settings") or {}


def no_ratio_of(base: Match, other: Match) -> str:
    """Why two of one's own cells have no ratio; nothing where they have: scaled down, they may be the same case."""
    one, two = base.source.row.case, other.source.row.case
    for match in (base, other):
        row = match.source.row
        if not match.source.ok:
            return f"no ratio: {row.status}"
        if row.asked and row.asked.get("world_size", 1) != row.case.get("world_size", 1):
            return "no ratio: measured on fewer devices than published"
    if one.get("world_size", 1) != two.get("world_size", 1) and _per_device(one) != _per_device(two):
        return "no ratio: the batch of a device differs"
    return "no ratio: scaled down, both cases are the same" if base.scaled and one == two else ""


def _per_device(case: Mapping[str, Any]) -> float | None:
    batch, devices = number(case.get("global_batch_size")), number(case.get("world_size", 1))
    return batch / devices if batch and devices else None
