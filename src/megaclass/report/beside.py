"""Published tables in their own shape, with one's own numbers of the same cases below each published line."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from megaclass.bench.case import Metric
from megaclass.report.document import Cell, Column, Line, Section, Table, text_table
from megaclass.report.own import repeats, trained_settings, values_of
from megaclass.report.sources import Identity, Machine, Source
from megaclass.report.words import OURS, changes, declared, digits, per_device, scaled_down, value_text
from megaclass.results import published
from megaclass.results.stats import FEWEST, Ratio, interval, percentile, quotient_text

_NONE = "No row of this report measured a case of this table."
_SCALED = "* scaled down to fit this machine: not comparable with the published number. Labels in its line: what ran."
_UNITS = {"GB": 1 / 1024, "h": 1 / 3600, "min": 1 / 60, "%": 100.0}  # of MiB, seconds and shares
_NO_RATIO = (
    "no ratio: one of the two has no number, ran on fewer devices than published or with another batch of a device, or "
    "scaled down both are the same case"
)
_PLAIN = f"a plain quotient: an interval needs a number of steps, and {FEWEST} steps or more"
# What to say of a memory that is not the one that a driver reports; the first that was measured counts.
_MEMORY = {
    "driver": "",
    "reserved": "memory reserved by PyTorch: the driver told none",
    "allocated": "memory allocated by PyTorch: the driver told none",
    "process": "memory of the process: measured on a CPU",
}
# Of repeats (seeds), by the end of a measure's name.
_OVER_REPEATS: dict[str, Callable[[list[float]], float]] = {"": fmean, "std": stdev, "min": min, "max": max}
# What a published case may leave open and a row of one's own decides: each gets a line of its own.
_OPEN = ("engine", "storage", "device", "data")
_BATCH = "batch of a device"  # that too, where a report does not state it
# What a report that does not name it implies: no other setting was changed, no rank was only played.
_IMPLIED: dict[str, Any] = {"simulate_ranks": 1, "sample_rate": 1.0}


# -- which rows measured a published case -------------------------------------------------------------


class Variant(NamedTuple):
    """Whose numbers may stand in one line: those of one machine, one implementation, one way to run it."""

    machine: Identity
    implementation: str
    open: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Match:
    """The rows of a cell: the one that stands for it last, or all repeats. others: how many more measured the case."""

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
    def notes(self) -> list[str]:
        """What was changed of the published case, and how many rows there are besides."""
        row, found = self.source.row, []
        if changed := changes(row.asked, row.case):
            scaled = f"scaled down to fit: {changed}; not the published case"
            found.append(scaled if self.scaled else f"as published, but: {changed}")
        if self.others:
            found.append(f"{self.others} more of the case: earlier ones, or of another training")
        return found


def _matches(suite: str, benchmark: str, case: Mapping[str, Any], sources: Iterable[Source]) -> dict[Variant, Match]:
    """What stands for a case, as a suite of that name asked for it or as anybody measured it, by variant: of its rows
    one with a number, of the suite itself, as published, the latest; or all repeats of it."""
    no_batch = benchmark == "train" and "global_batch_size" not in case
    groups: dict[Variant, list[Source]] = {}
    for source in sources:
        row = source.row
        wanted = row.asked or row.case
        # Where no batch is stated, that of another report is another case.
        other = no_batch and row.suite not in ("", suite)
        if row.benchmark == benchmark and not other and _measures(case, wanted):
            way = [(key, str(row.case[key])) for key in _OPEN if key in row.case]
            if no_batch:
                batch = per_device(wanted)
                told = "batch not recorded" if batch is None else f"batch {batch:,.6g} a device"
                way.append((_BATCH, told))
            variant = Variant(source.machine, row.implementation, tuple(way))
            groups.setdefault(variant, []).append(source)

    def rank(source: Source) -> tuple[Any, ...]:
        return source.ok, source.row.suite == suite, not scaled_down(source.row), source.age

    matches = {}
    for variant, group in groups.items():
        shown = [max(group, key=rank)]
        if declared(benchmark).repeats and shown[0].ok:
            shown = repeats(source for source in sorted(group, key=rank) if source.ok)[-1]
        others = sum(source.ok and source not in shown for source in group)
        matches[variant] = Match(tuple(shown), others)
    return matches


def _measures(case: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether the case of a row is the published one: in all that this names, and in what it implies."""
    named = all(key in mine and mine[key] == value for key, value in case.items() if "settings" not in key)
    implied = all(mine.get(key, value) == value for key, value in _IMPLIED.items() if key not in case)
    return named and implied and _settings(mine, case) == _settings(case, case)


def _settings(case: Mapping[str, Any], asked: Mapping[str, Any]) -> Any:
    """Of a training to its end, what changes what is trained, or, where any recipe is allowed, the model; of a speed,
    all of them."""
    if asked.get("any_settings"):
        found = trained_settings(case)
        return isinstance(found, dict) and {k: v for k, v in found.items() if k.startswith("model.")}
    return trained_settings(case) if "epochs_trained" in case else case.get("settings") or {}


# -- tables ---------------------------------------------------------------------------------------------


def published_section(
    report: published.Report, sources: Sequence[Source], machines: Mapping[Identity, Machine]
) -> Section:
    source = ", ".join(filter(None, map(report.source.get, ("project", "document", "revision"))))
    tables = [_table(report, table, sources, machines) for table in report.tables]
    tables.sort(key=lambda table: table.remarks == [_NONE])  # those with numbers of both first
    tables += [
        text_table(f"Published server spec: {machine.title}", ("Key", "Value"), machine.spec, "published")
        for machine in report.machines.values()
    ]
    intro = (
        f"Published by {source}. Below each published line stands what was measured here of the same case, and, where "
        "that was measured as published, the ratio of the two with the interval in which resampling the measured steps "
        "puts it 95 times out of 100. Published numbers came without their spread."
    )
    return Section(f"Beside {report.name}: {report.title}", texts=[intro], tables=tables, bullets=report.notes)


def _table(
    report: published.Report,
    about: published.Table,
    sources: Sequence[Source],
    machines: Mapping[Identity, Machine],
) -> Table:
    def found(case: Mapping[str, Any]) -> dict[Variant, Match]:
        return _matches(report.name, about.benchmark, case, sources) if case else {}

    matches = [[found(cell.case) for cell in row] for row in about.rows]
    others = [[found(cell.case | cell.over) if cell.over else {} for cell in row] for row in about.rows]
    # A line for whoever measured a number of it, and not only what a ratio is of.
    variants = [
        dict.fromkeys(v for cell, by in zip(row, line, strict=True) if cell.over is None for v in by)
        for row, line in zip(about.rows, matches, strict=True)
    ]
    names = _names({variant for line in variants for variant in line}, machines)
    lines: list[Line] = []
    for row, mine, over, line in zip(about.rows, matches, others, variants, strict=True):
        owner = Cell(f"published: {report.machines[row[0].machine].title}")
        lines.append(Line([owner, *(Cell(cell.text, cell.value) for cell in row)], "published"))
        for variant in line:
            of, to = ([by.get(variant) for by in side] for side in (mine, over))
            lines += _own_lines(row, about.columns, of, to, names[variant])
    heads = [Column(column.title, column.kind != "label") for column in about.columns]
    own = [cell for line in lines if line.kind == "own" for cell in line.cells[1:]]
    scaled = [_SCALED] if any(cell.text.endswith("*") for cell in own) else []
    return Table(about.title, [Column("Machine", False), *heads], lines, scaled if names else [_NONE])


def _own_lines(
    row: Sequence[published.Cell],
    columns: Sequence[published.Column],
    matches: Sequence[Match | None],
    others: Sequence[Match | None],
    name: str,
) -> list[Line]:
    """One's own numbers, and their ratios to the published ones where there are any. others: the other cases of
    columns that hold ratios."""
    own, ratios = [Cell(name)], [Cell(f"ratio of {name} to published")]
    for cell, column, match, other in zip(row, columns, matches, others, strict=True):
        mine, ratio = Cell(), Cell()
        if column.kind == "label":
            mine = Cell(_label(column.measure, row, matches))
        elif match and cell.over is not None:
            mine = _of_own(column, match, other)
        elif match:
            mine, ratio = _number(cell, column, match)
        own.append(mine)
        ratios.append(ratio)
    lines = [Line(own, "own")]
    return [*lines, Line(ratios, "ratio")] if any(cell.text for cell in ratios[1:]) else lines


def _label(key: str, row: Sequence[published.Cell], matches: Sequence[Match | None]) -> str:
    """What ran, where that is one thing and another than the published line above says."""
    pairs = [(cell, m.source.row) for cell, m in zip(row, matches, strict=True) if m and m.source.ok]
    wanted = {value_text(key, cell.case.get(key)) for cell, one in pairs if key in one.case}
    ran = {value_text(key, one.case[key]) for _, one in pairs if key in one.case}
    return ran.pop() if len(ran) == 1 and ran != wanted else ""


def _number(cell: published.Cell, column: published.Column, match: Match) -> tuple[Cell, Cell]:
    """One's own number of a published one, and the ratio of the two."""
    row = match.source.row
    if not match.source.ok:
        return Cell(row.status, None, match.sources, (f"{row.status}: {row.reason}",)), Cell()
    found = _measured(match, column.measure, column.unit)
    if found is None or found.value is None:
        return Cell("not taken", None, match.sources), Cell()
    own = Cell(found.text + "*" * match.scaled, found.value, found.sources, (*match.notes, *found.notes))
    if match.scaled or not cell.value:
        return own, Cell()
    value, metric = found.value / cell.value, declared(row.benchmark).metric(column.measure)
    ratio = _with_interval(value, metric, found.sources) if metric else None
    if ratio is not None:
        return own, Cell(str(ratio), value, found.sources)
    return own, Cell(quotient_text(value), value, found.sources, (_PLAIN,))


def _measured(match: Match, measure: str, unit: str) -> Cell | None:
    """The number of a published column from the rows of its case, in the unit of the column."""
    benchmark = declared(match.source.row.benchmark)
    name, _, statistic = measure.rpartition("_") if benchmark.metric(measure) is None else (measure, "", "")
    metric = benchmark.metric(name)
    if metric is None or statistic not in _OVER_REPEATS:
        return None
    found = values_of(match.sources, metric)
    if len(found) < (2 if statistic == "std" else 1):
        return None
    held = match.source.row.memory_mb
    kind = next((note for name, note in _MEMORY.items() if held.get(name) is not None), "")
    seeds = f"of {len(found)} {benchmark.repeats}{'s' if len(found) > 1 else ''}" if benchmark.repeats else ""
    busy = next((source.busy for source, _ in found if source.busy), ())
    notes = [kind * (measure == "gpu_memory_mb"), seeds, *busy]
    value = _UNITS.get(unit, 1.0) * _OVER_REPEATS[statistic]([value for _, value in found])
    return Cell(digits(value), value, tuple(source for source, _ in found), tuple(filter(None, notes)))


def _with_interval(value: float, metric: Metric, sources: Sequence[Source]) -> Ratio | None:
    """With that of the steps that the number is of; None where it is not of steps, or of too few."""
    samples, statistic = sources[-1].row.samples_ms, metric.statistic
    if not statistic or len(sources) > 1 or len(samples) < FEWEST:
        return None
    percent = None if statistic == "mean" else float(statistic[1:])
    centre = fmean(samples) if percent is None else percentile(samples, percent)
    low, high = (end / centre for end in interval(samples, percent))
    if metric.better == "higher":  # the longer a step, the fewer samples in a second
        low, high = 1 / high, 1 / low
    return Ratio(value, value * low, value * high)


def _of_own(column: published.Column, match: Match, other: Match | None) -> Cell:
    """The ratio of two of one's own numbers, where the published column has one of two published."""
    if other is None:
        return Cell()
    if not _comparable(match, other):
        return Cell("–", None, (), (_NO_RATIO,))
    mine, reference = (_measured(one, column.measure, "") for one in (match, other))
    if mine is None or reference is None or not mine.value or not reference.value:
        return Cell()
    value = reference.value / mine.value if column.inverse else mine.value / reference.value
    scaled = match.scaled or other.scaled
    notes = ("of numbers that were scaled down to fit; not the published case",) if scaled else ()
    sources = tuple(dict.fromkeys((*mine.sources, *reference.sources)))
    return Cell(quotient_text(value) + "*" * scaled, value, sources, (*notes, *match.source.busy))


def _comparable(base: Match, other: Match) -> bool:
    """Whether two of one's own cells have a ratio: scaled down, they may be the same case."""
    one, two = base.source.row, other.source.row
    for row in (one, two):
        devices = row.case.get("world_size", 1)
        if row.status != "ok" or row.asked.get("world_size", devices) != devices:
            return False
    alike = one.case.get("world_size", 1) == two.case.get("world_size", 1)
    return (alike or per_device(one.case) == per_device(two.case)) and not (base.scaled and one.case == two.case)


def _names(variants: Iterable[Variant], machines: Mapping[Identity, Machine]) -> dict[Variant, str]:
    """Of each the machine, and what tells its line from others of it."""
    found = list(variants)
    names = {}
    for variant in found:
        group = [other for other in found if other.machine == variant.machine]
        words = [machines[variant.machine].name]
        if variant.implementation != OURS or len({other.implementation for other in group}) > 1:
            words.append(variant.implementation)
        shared = set.intersection(*(set(other.open) for other in group))
        words += [value for key, value in variant.open if key == _BATCH or (key, value) not in shared]
        names[variant] = ", ".join(words)
    return names
