"""Which of one's own rows measured the case of a published cell."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaclass.report.compared import repeats, settings_of
from megaclass.report.machines import Identity
from megaclass.report.sources import Source
from megaclass.report.words import changes, declared, number, scaled_down

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


def _variant(source: Source, case: Mapping[str, Any]) -> Variant:
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


def matches_of(
    suite: str, benchmark: str, case: Mapping[str, Any], sources: Iterable[Source]
) -> dict[Variant, Match]:
    """What stands for a case, as a suite of that name asked for it or as anybody measured it, by variant: of its rows
    one with a number, of the suite itself, as published, the latest; or all repeats of it."""

    def rank(source: Source) -> tuple[Any, ...]:
        return source.ok, source.row.suite == suite, not scaled_down(source.row), source.age

    groups: dict[Variant, list[Source]] = {}
    for source in (source for source in sources if source.row.benchmark == benchmark):
        # Where no batch is stated, that of another report is another case.
        other = _states_no_batch(benchmark, case) and source.row.suite not in ("", suite)
        if not other and _measures(case, source.row.asked or source.row.case):
            groups.setdefault(_variant(source, case), []).append(source)
    again = bool(declared(benchmark).repeats)
    return {variant: _match(sorted(found, key=rank), again) for variant, found in groups.items()}


def _match(found: Sequence[Source], repeated: bool) -> Match:
    done = [source for source in found if source.ok]
    if not repeated or not done:
        return Match((found[-1],), sum(source.ok for source in found[:-1]), repeated)
    seeds = repeats(done)[-1]
    return Match(tuple(seeds), len(done) - len(seeds), repeated)


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
