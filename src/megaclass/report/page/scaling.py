"""How throughput grows with devices: at the same batch of a device (weak) or of all together (strong)."""

from collections.abc import Sequence
from typing import Any

from megaclass.report.page.casecolumns import labels_of, split_case
from megaclass.report.page.document import Cell, Column, Line, Notes, Table
from megaclass.report.page.measures import samples, throughput
from megaclass.report.page.sources import Source
from megaclass.report.page.words import HOW_OFTEN, digits, key_of, name_of, number
from megaclass.stats import Ratio, ratio_of_medians

# Not part of what is kept the same. Of one device alone there are no collectives, of several they are included.
_ASIDE = (*HOW_OFTEN, "world_size", "global_batch_size", "threads", "seed", "collectives")


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
    found: dict[str, dict[int, Source]] = {}
    for source in sorted(sources, key=lambda source: (str(source.row.measured_at), source.number)):
        case, world_size = source.row.case, source.row.case.get("world_size")
        batch = number(case.get("global_batch_size"))
        if not (
            source.ok and throughput(source.row) and isinstance(world_size, int) and world_size > 0 and batch
        ):
            continue
        if case.get("simulate_ranks", 1) != 1:
            continue  # one device that plays a rank of many tells nothing of many
        kept = batch / world_size if weak else batch
        key = _rest(case) | {"batch": kept, "by": source.row.implementation, "on": source.machine}
        found.setdefault(key_of(key), {})[world_size] = source
    return [[group[n] for n in sorted(group)] for group in found.values() if len(group) > 1]


def speedup(source: Source, reference: Source) -> Ratio:
    """Throughput over that of the reference; the interval is that of the median steps."""
    value = (throughput(source.row) or 0.0) / (throughput(reference.row) or 1.0)
    mine, theirs = samples(source.row), samples(reference.row)
    if min(len(mine), len(theirs)) < 2:
        return Ratio(value, value, value)
    steps = ratio_of_medians(theirs, mine, resamples=500)
    return Ratio(value, value * steps.low / steps.value, value * steps.high / steps.value)


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
    text = "1.00" if source is first else str(ratio)
    efficiency = 100 * ratio.value / ideal
    return [
        Cell(digits(speed), (source,), (), speed),
        Cell(text, both, (), ratio.value),
        Cell(f"{efficiency:.1f}", both, (), efficiency),
    ]


def _rest(case: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key not in _ASIDE}


def _shown(case: dict[str, Any]) -> dict[str, Any]:
    return case | {"batch_per_device": case["global_batch_size"] / case["world_size"]}
