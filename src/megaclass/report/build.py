"""From rows to the document: what stands in a report, in which order."""

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from megaclass.errors import UserError
from megaclass.report.compared import ratio_text, reference_of, repeats, times_as_fast
from megaclass.report.comparison import THRESHOLD, compare_sources, comparison_table
from megaclass.report.document import Document, Headline, Section
from megaclass.report.machines import Identity, Machine, machines_of
from megaclass.report.pictures import pictures
from megaclass.report.published_tables import published_section
from megaclass.report.sources import Source
from megaclass.report.table import text_table
from megaclass.report.tables import own_tables, values_of
from megaclass.report.words import (
    OURS,
    case_text,
    declared,
    digits,
    number,
    quotient_text,
    scaled_down,
)
from megaclass.results.published import Report

_CURVES = (
    "Solid lines with dots: measured here, on the machine that the legend names. Dashed lines with squares: "
    "published by others. Dotted: what ideal scaling would give."
)
_PLAIN: dict[str, Any] = {"storage": "fp32", "sample_rate": 1.0, "settings": {}, "simulate_ranks": 1}


def build(
    sources: Sequence[Source],
    reports: Sequence[Report] = (),
    earlier: Sequence[Source] = (),
    strangers: Sequence[Path] = (),
) -> Document:
    """sources: the rows that the report is of. reports: published ones to stand beside. earlier: rows of one's own
    to compare with. strangers: files that held no rows."""
    everything = [*sources, *earlier]
    machines = machines_of(source.row.environment for source in everything)
    mine = {key: m for key, m in machines.items() if any(source.machine == key for source in sources)}
    specs = [text_table(f"Server spec: {m.name}", ("Key", "Value"), m.spec) for m in machines.values()]
    sections = [
        _summary(sources, mine, strangers),
        Section("Machines" if len(specs) > 1 else "Machine", tables=specs),
        *(published_section(report, sources, mine) for report in reports),
    ]
    if earlier:
        sections.append(_earlier_section(sources, earlier, machines))
    if drawn := pictures(sources, mine, reports):
        sections.append(Section("Curves", texts=[_CURVES], pictures=drawn))
    for benchmark in _benchmarks(sources):
        groups = _by_machine(sources, mine, benchmark)
        tables = [table for machine, group in groups for table in own_tables(group, machine.name)]
        sections.append(Section(declared(benchmark).title, tables=tables))
    names = list(mine.values())
    where = names[0].name if len(names) == 1 else f"{len(names)} machines"
    return Document(f"Benchmark report: {where}", sections, everything)


def _benchmarks(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(source.row.benchmark for source in sources))


def _by_machine(
    sources: Sequence[Source], machines: Mapping[Identity, Machine], benchmark: str
) -> list[tuple[Machine, list[Source]]]:
    rows = [source for source in sources if source.row.benchmark == benchmark]
    groups = [(m, [s for s in rows if s.machine == key]) for key, m in machines.items()]
    return [(machine, group) for machine, group in groups if group]


# -- summary --------------------------------------------------------------------------------------------


def _summary(
    sources: Sequence[Source], machines: Mapping[Identity, Machine], strangers: Sequence[Path]
) -> Section:
    steps = sum(len(source.samples_ms) for source in sources)
    files = len({source.path for source in sources})
    status = Counter(source.row.status for source in sources)
    days = sorted({str(source.row.measured_at)[:10] for source in sources if source.row.measured_at})
    when = f", measured on {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    counts = ", ".join(f"{count:,} {name}" for name, count in status.most_common())
    texts = [
        f"{len(sources):,} rows of {files} file{'' if files == 1 else 's'}, {steps:,} timed steps in all{when}. "
        f"{counts}. Every number links to the raw row that it is from."
    ]
    if strangers:
        names = ", ".join(path.name for path in strangers)
        texts.append(f"Left aside, as they hold no rows of a benchmark: {names}.")
    headlines = [
        headline
        for benchmark in _benchmarks(sources)
        for machine, group in _by_machine(sources, machines, benchmark)
        for headline in _headlines([source for source in group if source.ok], machine.name)
    ]
    return Section("Summary", headlines, texts)


def _headlines(group: Sequence[Source], machine: str) -> list[Headline]:
    """The best of our rows of a benchmark on a machine, and how it stands beside each other implementation."""
    ours = [source for source in group if source.row.implementation == OURS] or list(group)
    if not ours:
        return []
    what = declared(ours[0].row.benchmark)
    metric = what.metric(what.headline)
    rated = _fit_to_lead(values_of(ours, metric) if metric else [])
    if not rated or metric is None:
        return []
    best, value = (min if metric.better == "lower" else max)(rated, key=lambda pair: pair[1])
    detail, basis = f"{what.title}: {_case(best)}", f"the best of {len(rated):,} rows like it"
    if what.repeats:
        seeds = max(repeats(source for source, _ in rated), key=len)
        values = [value for _, value in values_of(seeds, metric)]
        best, value = seeds[0], fmean(values)
        basis = f"mean of {len(values):,} {what.repeats}{'s' * (len(values) > 1)}"
    ranks = number(best.row.case.get("simulate_ranks", 1)) or 1
    unit = metric.title
    if ranks != 1 and metric.key == "samples_per_second":  # the others did not run
        value, unit = value / ranks, f"{unit} a rank"
        detail += f", one of {ranks:,.12g} ranks, the others simulated"
    detail += " (scaled down to fit)" if scaled_down(best.row) else ""
    basis = basis if what.repeats or len(rated) > 1 else ""
    found = [Headline(digits(value), unit, detail, machine, _basis(best, basis), best)]
    return found + _ratio_headlines(group, machine)


def _fit_to_lead(rated: list[tuple[Source, float]]) -> list[tuple[Source, float]]:
    """A rank that stands for many counts the samples of those that did not run, a scaled case is not the one that was
    asked for, and the least work is the fastest: the others go first, and the most classes."""
    rated = [pair for pair in rated if pair[0].row.case.get("simulate_ranks", 1) == 1] or rated
    rated = [pair for pair in rated if not scaled_down(pair[0].row)] or rated
    most = max((_classes(source) for source, _ in rated), default=0)
    return [pair for pair in rated if _classes(pair[0]) == most]


def _ratio_headlines(group: Sequence[Source], machine: str) -> list[Headline]:
    """For every other implementation, beside the first of ours that took turns with it, at the most classes."""
    rows = [source.row for source in sorted(group, key=_classes, reverse=True)]
    sources = {id(source.row): source for source in group}
    found: dict[str, Headline] = {}
    for row in (row for row in rows if row.implementation != OURS):
        mine = reference_of(row, rows)
        ratio = times_as_fast(mine, row) if mine else None
        if mine and ratio and row.implementation not in found:
            first, precisions = sources[id(mine)], [one.case.get("precision") for one in (mine, row)]
            beside = ", {} beside its {}".format(*precisions) if all(precisions) else ""
            detail = f"{declared(row.benchmark).title} {ratio_text(ratio)}{beside}: {_case(first)}"
            text, unit = quotient_text(ratio.value), f"times as fast as {row.implementation}"
            found[row.implementation] = Headline(text, unit, detail, machine, _basis(first, ""), first)
    return list(found.values())


def _classes(source: Source) -> float:
    return number(source.row.case.get("num_classes")) or 0.0


def _case(source: Source) -> str:
    """What a reader needs to know of a case: what the benchmark lets one sweep, and settings, where unusual."""
    fields = declared(source.row.benchmark).fields
    keys = [name for name, data in fields.items() if data.get("sweeps") and name != "seed"]
    keys += ["recipe", "backbone", "num_classes", "world_size", "precision", "settings"]
    case = {
        key: value
        for key, value in source.row.case.items()
        if key in keys and (key not in _PLAIN or _PLAIN[key] != value)
    }
    return case_text(case)


def _basis(source: Source, more: str) -> str:
    """Versions, and of how many steps."""
    environment, steps = source.row.environment, len(source.samples_ms)
    revision = re.sub(
        r"^([0-9a-f]{9})[0-9a-f]{31}(-dirty)?.*", r"\1\2", str(environment.get("revision") or "")
    )
    named = {"PyTorch": environment.get("pytorch"), "CUDA": environment.get("cuda"), "revision": revision}
    words = [f"{name} {value}" for name, value in named.items() if value]
    words.append(f"n = {steps:,} step{'' if steps == 1 else 's'}" if steps else "n = 1 run")
    return ", ".join(filter(None, [*words, more, *source.busy]))


# -- against earlier results ----------------------------------------------------------------------------


def _earlier_section(
    new: Sequence[Source], earlier: Sequence[Source], machines: Mapping[Identity, Machine]
) -> Section:
    """Cases that were measured both times on one machine: those of two would be compared as machines."""
    tables = []
    for benchmark in _benchmarks(new):
        before = dict(_by_machine(sorted(earlier, key=lambda source: source.age), machines, benchmark))
        for machine, group in _by_machine(new, machines, benchmark):
            with contextlib.suppress(UserError):  # no case in common
                found = compare_sources(before.get(machine, []), group)
                tables.append(comparison_table(f"{benchmark}: {machine.name}", found))
    intro = (
        f"Cases of the same machine, in {len(earlier)} earlier rows. The ratio is that of the median steps, later over "
        "earlier: below 1 is faster. Its interval is that of resampled stretches of steps, and the verdict is that of "
        f"`megaclass compare`, for {THRESHOLD:.0%}."
    )
    texts = [intro] if tables else [intro, "No case of a machine was measured both times."]
    return Section("Against earlier results", texts=texts, tables=tables)
