"""Rows beside rows: those that took turns, those that differ in devices alone, and repeats of one case."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from megaclass.report.sources import Source
from megaclass.report.table import printable
from megaclass.report.words import (
    OURS,
    case_text,
    chosen,
    declared,
    differing,
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


def reference_of(source: Source, sources: Iterable[Source]) -> Source | None:
    """The first of our rows that a row took turns with; None where it is that one, or where there is none."""
    mine = source.row.group
    ours = (o for o in sources if o.ok and o.row.group == mine != "" and o.row.implementation == OURS)
    first = next(ours, source)
    return None if first is source else first


def times_as_fast(mine: Row, other: Row, field: str = "samples_ms") -> Ratio | None:
    """How many times as fast as ``other`` ``mine`` is, by median steps; rounds (or steps) that were measured side by
    side are drawn together. None: no times in one of them. field: ``cpu_ms`` compares the time of processors."""
    theirs, ours = round_medians(other, field), round_medians(mine, field)
    if len(theirs) != len(ours) or len(theirs) < 2:
        theirs, ours = getattr(other, field), getattr(mine, field)
    if not theirs or not ours or not all((*theirs, *ours)):
        return None
    together = bool(mine.group) and mine.group == other.group and len(theirs) == len(ours)
    return ratio_of_medians(theirs, ours, paired=together)


def round_medians(row: Row, field: str = "samples_ms") -> list[float]:
    """The median step of every timed epoch, ms: what takes turns does so epoch by epoch."""
    steps, rounds = getattr(row, field), len(row.epochs)
    if not rounds or len(steps) % rounds:
        return []
    size = len(steps) // rounds
    return [median(steps[i : i + size]) for i in range(0, len(steps), size or 1)]


def spread_percent(row: Row) -> float | None:
    """How far the medians of the rounds lie apart, in percent of their median; None for a single round."""
    found = round_medians(row)
    return 100 * (max(found) - min(found)) / median(found) if len(found) > 1 else None


def comparisons(rows: Sequence[Row]) -> list[str]:
    """A line for each of our rows and each other that took turns with it; of ours alone the first beside the rest."""
    found = [row for row in rows if row.status == "ok"]
    whole = unfolded([row.case for row in found])
    cases = {
        id(row): {key: case[key] for key in case if chosen(row, key)}
        for row, case in zip(found, whole, strict=True)
    }
    pairs, lines = _pairs(found), []
    told = differing([cases[id(mine)] for mine, _ in pairs])
    for mine, other in pairs:
        if ratio := times_as_fast(mine, other):
            one, two = cases[id(mine)], cases[id(other)]
            differ = differing([one, two])
            mine_told = case_text(one, dict.fromkeys([*told, *differ]))
            who = ", ".join(filter(None, (mine.implementation, mine_told)))
            name = other.implementation if other.implementation != OURS else ""
            whom = ", ".join(filter(None, (name, case_text(two, differ)))) or "the same again"
            by_cpu = times_as_fast(mine, other, "cpu_ms")
            more = f" ({ratio_text(by_cpu)} by the time of processors)" if by_cpu else ""
            if (part := memory_ratio(mine, other)) is not None:
                more += f", with {quotient_text(part)} of its memory"
            lines.append(printable(f"{who}: {ratio_text(ratio)} times as fast as {whom}{more}"))
    return lines


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    pairs: list[tuple[Row, Row]] = []
    for group in dict.fromkeys(row.group for row in rows if row.group):
        ours = [row for row in rows if row.group == group and row.implementation == OURS]
        others = [row for row in rows if row.group == group and row.implementation != OURS]
        beside = [(mine, other) for mine in ours for other in others]
        pairs += beside or [(ours[0], other) for other in ours[1:]]
    return pairs


def memory_ratio(over: Row, under: Row) -> float | None:
    """Of the GPU, or of the process on a CPU; None where either did not measure it."""
    for name in ("allocated", "process"):
        one, two = over.memory_mb.get(name), under.memory_mb.get(name)
        if one is not None and two:
            return one / two
    return None


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
        key = key_of([kept, batch / devices if weak else batch, source.row.implementation, source.machine])
        found.setdefault(key, {})[devices] = source
    return [[group[n] for n in sorted(group)] for group in found.values() if len(group) > 1]


def speed(row: Row) -> float | None:
    """Samples a second, as the benchmark declares them."""
    metric = declared(row.benchmark).metric("samples_per_second")
    return read(metric, row) if metric else None


def speedup(source: Source, reference: Source) -> Ratio:
    """Speed over that of the reference, with the interval of the median steps: both were measured apart."""
    value = (speed(source.row) or 0.0) / (speed(reference.row) or 1.0)
    found = Ratio(1.0, 1.0, 1.0)
    if source.row.samples_ms and reference.row.samples_ms:
        found = ratio_of_medians(reference.row.samples_ms, source.row.samples_ms)
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
