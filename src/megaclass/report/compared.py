"""Rows beside rows: those that took turns, those that differ in devices alone, and repeats of one case."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from megaclass.report.sources import Source
from megaclass.report.table import printable
from megaclass.report.words import (
    OURS,
    case_text,
    declared,
    effort,
    key_of,
    number,
    quotient_text,
    read,
    unfolded,
)
from megaclass.results.rows import Row
from megaclass.results.stats import Ratio, ratio_of_medians

# Settings that change how a training is run, and nothing of what comes out of it.
_RUN = ("run.", "data.workers")


def ratio_text(ratio: Ratio) -> str:
    low, high = quotient_text(ratio.low), quotient_text(ratio.high)
    return f"{quotient_text(ratio.value)} ({low} to {high})"


# -- rows that took turns -------------------------------------------------------------------------------


def reference_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The first of our rows that a row took turns with; None where it is that one, or where there is none."""
    group = [other for other in rows if other.group and other.group == row.group and other.status == "ok"]
    ours = [other for other in group if other.implementation == OURS]
    return ours[0] if ours and ours[0] is not row else None


def times_as_fast(mine: Row, other: Row, field: str = "samples_ms") -> Ratio | None:
    """How many times as fast as ``other`` ``mine`` is, by median steps; rounds (or steps) that were measured side by
    side are drawn together. None: no times in one of them. field: ``cpu_ms`` compares the time of processors."""
    theirs, ours = round_medians(other, field), round_medians(mine, field)
    if len(theirs) != len(ours) or len(theirs) < 2:
        theirs, ours = _times(other, field), _times(mine, field)
    if not theirs or not ours:
        return None
    together = bool(mine.group) and mine.group == other.group and len(theirs) == len(ours)
    return ratio_of_medians(theirs, ours, paired=together)


def round_medians(row: Row, field: str = "samples_ms") -> list[float]:
    """The median step of every timed epoch, ms: what takes turns does so epoch by epoch."""
    steps, rounds = _times(row, field), len(row.epochs)
    if not rounds or not steps or len(steps) % rounds:
        return []
    size = len(steps) // rounds
    return [median(steps[i : i + size]) for i in range(0, len(steps), size)]


def spread_percent(row: Row) -> float | None:
    """How far the medians of the rounds lie apart, in percent of their median; None for a single round."""
    found = round_medians(row)
    return 100 * (max(found) - min(found)) / median(found) if len(found) > 1 else None


def _times(row: Row, field: str) -> list[float]:
    """The times, or none where not all are: rows are read from files that anyone may have written."""
    values = getattr(row, field)
    known = [found for value in values if (found := number(value)) is not None and found > 0]
    return known if len(known) == len(values) else []


def comparisons(rows: Sequence[Row]) -> list[str]:
    """A line for each of our rows and each other that took turns with it; of ours alone the first beside the rest."""
    found = [row for row in rows if row.status == "ok"]
    whole = unfolded([row.case for row in found])
    cases = {id(row): _chosen(row, case) for row, case in zip(found, whole, strict=True)}
    pairs: list[tuple[Row, Row]] = []
    for group in dict.fromkeys(row.group for row in found if row.group):
        members = [row for row in found if row.group == group]
        ours = [row for row in members if row.implementation == OURS]
        others = [row for row in members if row.implementation != OURS]
        beside = [(mine, other) for mine in ours for other in others]
        pairs += beside or [(ours[0], other) for other in ours[1:]]
    told = _differing([cases[id(mine)] for mine, _ in pairs])
    lines = []
    for mine, other in pairs:
        if (ratio := times_as_fast(mine, other)) is None:
            continue
        both = [cases[id(mine)], cases[id(other)]]
        differ = _differing(both)
        who = ", ".join(
            filter(None, (mine.implementation, case_text(both[0], dict.fromkeys([*told, *differ]))))
        )
        name = other.implementation if other.implementation != OURS else ""
        beside_whom = ", ".join(filter(None, (name, case_text(both[1], differ)))) or "the same again"
        by_cpu = times_as_fast(mine, other, "cpu_ms")
        more = f" ({ratio_text(by_cpu)} by the time of processors)" if by_cpu else ""
        lines.append(f"{who}: {ratio_text(ratio)} times as fast as {beside_whom}{more}{_memory(mine, other)}")
    return list(map(printable, lines))


def _chosen(row: Row, case: Mapping[str, Any]) -> dict[str, Any]:
    """Of an unfolded case what somebody chose: parameters that sweep, and settings."""
    fields = declared(row.benchmark).fields
    return {
        key: value for key, value in case.items() if key not in row.case or fields.get(key, {}).get("sweeps")
    }


def _differing(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for case in cases for key in case)
    return [key for key in keys if len({key_of(case.get(key)) for case in cases}) > 1]


def _memory(mine: Row, other: Row) -> str:
    for name in ("allocated", "process"):
        ours, theirs = number(mine.memory_mb.get(name)), number(other.memory_mb.get(name))
        if ours is not None and theirs:
            return f", with {quotient_text(ours / theirs)} of its memory"
    return ""


# -- scaling --------------------------------------------------------------------------------------------


def scaling_groups(sources: Sequence[Source], *, weak: bool) -> list[list[Source]]:
    """Rows of one machine that differ in devices alone, at least two, by their number; of each the latest.

    weak: the batch of a device is the same; else the global one. Threads are those of each process: on a CPU they are
    what a device is, elsewhere they do nothing."""
    found: dict[str, dict[float, Source]] = {}
    for source in sorted(sources, key=lambda source: source.age):
        case = source.row.case
        devices, batch = (number(case.get(key)) for key in ("world_size", "global_batch_size"))
        # One device that plays a rank of many tells nothing of many.
        if not (source.ok and speed(source.row) and devices and batch) or case.get("simulate_ranks", 1) != 1:
            continue
        aside = {"world_size", "global_batch_size", "collectives", declared(source.row.benchmark).repeats}
        aside |= set() if case.get("device") == "cpu" else {"threads"}
        kept = {key: value for key, value in case.items() if key not in aside | effort()}
        kept["per"] = batch / devices if weak else batch
        key = key_of([kept, source.row.implementation, source.machine])
        found.setdefault(key, {})[devices] = source
    return [[group[n] for n in sorted(group)] for group in found.values() if len(group) > 1]


def speed(row: Row) -> float | None:
    """Samples a second, as the benchmark declares them."""
    metric = declared(row.benchmark).metric("samples_per_second")
    return read(metric, row) if metric else None


def speedup(source: Source, reference: Source) -> Ratio:
    """Speed over that of the reference, with the interval of the median steps: both were measured apart."""
    value = (speed(source.row) or 0.0) / (speed(reference.row) or 1.0)
    if not source.samples_ms or not reference.samples_ms:
        return Ratio(value, value, value)
    found = ratio_of_medians(reference.samples_ms, source.samples_ms)
    return Ratio(value, value * found.low / found.value, value * found.high / found.value)


# -- repeats --------------------------------------------------------------------------------------------


def settings_of(case: Mapping[str, Any]) -> Any:
    """Those that change what is trained."""
    settings = case.get("settings") or {}
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if not key.startswith(_RUN)}


def repeats(sources: Iterable[Source]) -> list[list[Source]]:
    """The rows of each case that differ in what makes a repeat (a seed) alone; of a seed that was measured again the
    latest. The case that was measured last is the last."""
    found: dict[str, dict[str, Source]] = {}
    for source in sorted(sources, key=lambda source: source.age):
        row = source.row
        what = declared(row.benchmark).repeats
        case = {key: value for key, value in row.case.items() if key != what}
        key = key_of([case | {"settings": settings_of(case)}, row.implementation, source.machine])
        before = found.pop(key, {})  # to the end
        found[key] = before | {key_of(row.case.get(what)): source}
    return [sorted(group.values(), key=lambda source: source.number) for group in found.values()]
