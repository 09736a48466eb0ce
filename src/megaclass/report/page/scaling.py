"""How throughput grows with devices: at the same batch of a device (weak) or of all together (strong)."""

from collections.abc import Sequence
from math import exp, hypot, log
from statistics import median
from typing import Any

from megaclass.report.page.casecolumns import labels_of, split_case
from megaclass.report.page.document import Cell, Column, Line, Notes, Table
from megaclass.report.page.measures import ratio_text, step_interval, throughput
from megaclass.report.page.sources import Source
from megaclass.report.page.words import HOW_OFTEN, digits, key_of, name_of, number
from megaclass.results.stats import Ratio

# Not part of what is kept the same. Of one device alone there are no collectives, of several they are included.
_ASIDE = (*HOW_OFTEN, "world_size", "global_batch_size", "seed", "collectives")


def scaling_tables(sources: Sequence[Source], machine: str) -> list[Table]:
    """Tables for the rows of one machine, where some differ in devices alone."""
    weak = "throughput over that of the fewest devices, at the same batch of a device"
    strong = "throughput over that of the fewest devices, at the same global batch"
    tables = [
        _table(f"Weak scaling: {machine}", weak, groups(sources, weak=True)),
        _table(f"Strong scaling: {machine}", strong, groups(sources, weak=False)),
    ]
    return [table for table in tables if table is not None]


def groups(sources: Sequence[Source], *, weak: bool) -> list[list[Source]]:
    """Rows of one machine that differ in devices alone, at least two, by their number; of each the latest."""
    found: dict[str, dict[float, Source]] = {}
    for source in sorted(sources, key=lambda source: (str(source.row.measured_at), source.number)):
        case, world_size = source.row.case, number(source.row.case.get("world_size"))
        batch = number(case.get("global_batch_size"))
        if not (source.ok and throughput(source.row) and world_size and world_size > 0 and batch):
            continue
        if case.get("simulate_ranks", 1) != 1:
            continue  # one device that plays a rank of many tells nothing of many
        kept = batch / world_size if weak else batch
        key = _rest(case) | {"batch": kept, "by": source.row.implementation, "on": source.machine}
        found.setdefault(key_of(key), {})[world_size] = source
    return [[group[n] for n in sorted(group)] for group in found.values() if len(group) > 1]


def speedup(source: Source, reference: Source) -> Ratio:
    """Throughput over that of the reference. The interval is that of the median steps, from those of the two alone
    (Zou and Donner, Statist. Med. 27, 2008): both runs were taken apart, and the cost does not grow with the steps."""
    value = (throughput(source.row) or 0.0) / (throughput(reference.row) or 1.0)
    if min(len(source.samples_ms), len(reference.samples_ms)) < 2:
        return Ratio(value, value, value)
    shorter, longer = _down_and_up(reference)
    mine_shorter, mine_longer = _down_and_up(source)
    low, high = hypot(shorter, mine_longer), hypot(longer, mine_shorter)
    return Ratio(value, value * exp(-low), value * exp(high))


def _down_and_up(source: Source) -> tuple[float, float]:
    """How far the interval of the median step goes below and above it, as logarithms."""
    centre, (low, high) = median(source.samples_ms), step_interval(source, "p50")
    return log(centre / low), log(high / centre)


def _table(title: str, remark: str, found: list[list[Source]]) -> Table | None:
    if not found:
        return None
    cases = [_shown(source.row.case) for group in found for source in group]
    keys, same = split_case(
        cases, ("recipe", "precision", "world_size", "global_batch_size", "batch_per_device")
    )
    heads = [Column(name_of(key).capitalize(), False) for key in keys]
    heads += map(Column, ("Samples/s", "Scaling", "Efficiency, %"))
    lines = []
    for group in found:
        for source in group:
            lines.append(Line((*labels_of(_shown(source.row.case), keys), *_numbers(source, group[0]))))
    remarks = [f"Scaling: {remark}.", *([f"The same in all: {same}."] if same else [])]
    return Table(title, heads, lines, Notes(), remarks)


def _numbers(source: Source, first: Source) -> list[Cell]:
    speed = throughput(source.row)
    ratio = speedup(source, first)
    ideal = source.row.case["world_size"] / first.row.case["world_size"]
    both = (source,) if source is first else (source, first)
    text = "1.00" if source is first else ratio_text(ratio)
    efficiency = 100 * ratio.value / ideal
    return [
        Cell(digits(speed), (source,), (), speed),
        Cell(text, both, (), ratio.value),
        Cell(f"{efficiency:.1f}", both, (), efficiency),
    ]


def _rest(case: dict[str, Any]) -> dict[str, Any]:
    """Threads are those of each process: on a CPU they are what a device is, elsewhere they do nothing."""
    aside = _ASIDE if case.get("device") == "cpu" else (*_ASIDE, "threads")
    return {key: value for key, value in case.items() if key not in aside}


def _shown(case: dict[str, Any]) -> dict[str, Any]:
    return case | {"batch_per_device": case["global_batch_size"] / case["world_size"]}
