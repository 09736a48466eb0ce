"""New results beside earlier ones of one's own, case by case."""

from collections.abc import Mapping, Sequence

from megaclass.report.page.casecolumns import labels_of, split_case
from megaclass.report.page.document import Cell, Column, Line, Notes, Section, Table
from megaclass.report.page.machines import Identity, Machine
from megaclass.report.page.measures import MOST_JUDGED, latency_ms, steps
from megaclass.report.page.sources import Source
from megaclass.report.page.words import HOW_OFTEN, digits, key_of, name_of, number
from megaclass.results.stats import Ratio
from megaclass.results.verdict import judge

THRESHOLD = 0.05
Pair = tuple[Source, Source]  # the earlier one, and the new one


def earlier_section(
    new: Sequence[Source], earlier: Sequence[Source], machines: Mapping[Identity, Machine]
) -> Section:
    """Cases that were measured both times. Of several rows of a case on a machine the latest stands for it."""
    pairs = _pairs(new, earlier)
    tables = []
    for benchmark in dict.fromkeys(pair[0].row.benchmark for pair in pairs):
        these = [pair for pair in pairs if pair[0].row.benchmark == benchmark]
        same = [pair for pair in these if pair[0].machine == pair[1].machine]
        for machine in dict.fromkeys(pair[0].machine for pair in same):
            name = machines[machine].name
            tables.append(_same_machine(f"{benchmark}: {name}", [p for p in same if p[0].machine == machine]))
        others = [pair for pair in these if pair[0].machine != pair[1].machine]
        if others:
            tables.append(_two_machines(f"{benchmark}: different machines", others, machines))
    found = {id(mine) for _, mine in pairs}  # a case may have earlier rows of several machines
    intro = (
        f"{len(found)} of {len(_latest(new))} cases were measured before, in {len(earlier)} rows. The ratio is that "
        "of the speeds, new over earlier: above 1 is faster. Its interval is that in which two runs of one program "
        f"would have it, and the verdict is that of `megaclass compare`, for {THRESHOLD:.0%}; "
        f"of more than {MOST_JUDGED:,} steps every so many-th is judged."
    )
    return Section("Against earlier results", [intro, *tables])


def _latest(sources: Sequence[Source]) -> dict[str, Source]:
    """By case and machine."""
    ordered = sorted(sources, key=lambda source: (str(source.row.measured_at), source.number))
    return {f"{_case(source)} {source.machine}": source for source in ordered if source.ok}


def _case(source: Source) -> str:
    case = {key: value for key, value in source.row.case.items() if key not in HOW_OFTEN}
    return key_of({"by": source.row.implementation, "what": source.row.benchmark, "case": case})


def _pairs(new: Sequence[Source], earlier: Sequence[Source]) -> list[Pair]:
    """With the earlier row of the same machine, or, where that has none, with those of all others."""
    before = _latest(earlier)
    pairs = []
    for source in _latest(new).values():
        same = before.get(f"{_case(source)} {source.machine}")
        found = [same] if same else [other for other in before.values() if _case(other) == _case(source)]
        pairs += [(other, source) for other in found]
    return pairs


def _same_machine(title: str, pairs: Sequence[Pair]) -> Table:
    unit = _unit(pairs)
    labels, heads, remarks = _labels(pairs)
    heads += map(Column, (f"Earlier, {unit}", f"New, {unit}", "Ratio of speeds"))
    heads.append(Column("Verdict", False))
    lines, notes = [], Notes()
    for pair, cells in zip(pairs, labels, strict=True):
        lines.append(Line((*cells, *(_speed(source, unit) for source in pair), *_judged(pair, notes))))
    return Table(title, heads, lines, notes, remarks)


def _judged(pair: Pair, notes: Notes) -> tuple[Cell, Cell]:
    """The ratio of the speeds, and what it means."""
    before, mine = (steps(source.row) for source in pair)
    if before is None or mine is None:
        return Cell(), Cell()
    verdict = judge(before, mine, THRESHOLD)
    if verdict.ratio is None:
        return Cell(), Cell(verdict.word, (), notes.add(verdict.reason))
    time = verdict.ratio
    speed = Ratio(1 / time.value, 1 / time.high, 1 / time.low)
    return (
        Cell(str(speed), (pair[1], pair[0]), (), speed.value),
        Cell(verdict.word, (), notes.add(verdict.reason)),
    )


def _two_machines(title: str, pairs: Sequence[Pair], machines: Mapping[Identity, Machine]) -> Table:
    """Side by side, each beside its machine, and no ratio: it would be one of machines."""
    unit = _unit(pairs)
    labels, heads, remarks = _labels(pairs)
    for when in ("Earlier", "New"):
        heads += [Column(f"{when} machine", False), Column(f"{when}, {unit}")]
    lines = []
    for pair, cells in zip(pairs, labels, strict=True):
        sides = [cell for s in pair for cell in (Cell(machines[s.machine].name), _speed(s, unit))]
        lines.append(Line((*cells, *sides)))
    return Table(title, heads, lines, Notes(), ["No ratio: the machines differ.", *remarks])


def _labels(pairs: Sequence[Pair]) -> tuple[list[list[Cell]], list[Column], list[str]]:
    rows = [new.row for _, new in pairs]
    keys, same = split_case([row.case for row in rows])
    named = len({row.implementation for row in rows}) > 1 or not keys
    labels = [[Cell(row.implementation)] * named + labels_of(row.case, keys) for row in rows]
    heads = [Column("Implementation", False)] * named + [Column(name_of(k).capitalize(), False) for k in keys]
    return labels, heads, [f"The same in all: {same}."] if same else []


def _unit(pairs: Sequence[Pair]) -> str:
    rated = all(number(source.row.samples_per_second) for pair in pairs for source in pair)
    return "samples/s" if rated else "ms"


def _speed(source: Source, unit: str) -> Cell:
    row = source.row
    found = number(row.samples_per_second) if unit == "samples/s" else latency_ms(row, "p50")
    return Cell() if found is None else Cell(digits(found), (source,), (), found)
