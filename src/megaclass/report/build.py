"""From rows to the document: what stands in a report, in which order."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from megaclass.report.beside import published_section
from megaclass.report.document import Document, Headline, Section, text_table
from megaclass.report.own import own_tables, reference_of, repeats, times_as_fast, values_of
from megaclass.report.pictures import pictures
from megaclass.report.sources import Identity, Machine, Source, machines_of, read_sources
from megaclass.report.words import OURS, case_text, declared, digits, scaled_down
from megaclass.results import published
from megaclass.results.rows import number
from megaclass.results.stats import quotient_text

_CURVES = (
    "Solid lines with dots: measured here, on the machine that the legend names. Dashed lines with squares: "
    "published by others. Dotted: what ideal scaling would give."
)
_USUAL: dict[str, Any] = {"storage": "fp32", "sample_rate": 1.0, "settings": {}, "simulate_ranks": 1}


def collect(paths: Sequence[str], against: Sequence[str] = ()) -> Document:
    """Read the rows and make the document, with the published reports of their suites and of the names ``against``.

    Raises UserError: no rows, unreadable, a newer schema, a name of no published report.
    """
    sources, known = read_sources(paths), published.names()
    suites = [source.row.suite for source in sources if source.row.suite in known]
    return build(sources, [published.load(name) for name in dict.fromkeys([*suites, *against])])


def build(sources: Sequence[Source], reports: Sequence[published.Report] = ()) -> Document:
    """sources: the rows that the report is of. reports: published ones to stand beside."""
    machines = machines_of(source.row.environment for source in sources)
    groups = list(_groups(sources, machines))
    specs = [text_table(f"Server spec: {m.name}", ("Key", "Value"), m.spec) for m in machines.values()]
    sections = [
        _summary(sources, groups),
        Section("Machines" if len(specs) > 1 else "Machine", tables=specs),
        *(published_section(report, sources, machines) for report in reports),
    ]
    if drawn := pictures(sources, machines, reports):
        sections.append(Section("Curves", texts=[_CURVES], pictures=drawn))
    for benchmark, found in itertools.groupby(groups, key=lambda group: group[0]):
        tables = [table for _, machine, group in found for table in own_tables(group, machine.name)]
        sections.append(Section(declared(benchmark).title, tables=tables))
    names = list(machines.values())
    where = names[0].name if len(names) == 1 else f"{len(names)} machines"
    return Document(f"Benchmark report: {where}", sections, list(sources))


_Group = tuple[str, Machine, list[Source]]


def _groups(sources: Sequence[Source], machines: Mapping[Identity, Machine]) -> Iterable[_Group]:
    """The rows of each benchmark on each machine."""
    for benchmark in dict.fromkeys(source.row.benchmark for source in sources):
        for key, machine in machines.items():
            if group := [s for s in sources if s.row.benchmark == benchmark and s.machine == key]:
                yield benchmark, machine, group


# -- summary --------------------------------------------------------------------------------------------


def _summary(sources: Sequence[Source], groups: Sequence[_Group]) -> Section:
    steps = sum(len(source.row.samples_ms) for source in sources)
    files = len({source.path for source in sources})
    status = Counter(source.row.status for source in sources)
    days = sorted({source.row.measured_at[:10] for source in sources if source.row.measured_at})
    when = f", measured on {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    counts = ", ".join(f"{count:,} {name}" for name, count in status.most_common())
    text = (
        f"{len(sources):,} rows of {files} file{'' if files == 1 else 's'}, {steps:,} timed steps in all{when}. "
        f"{counts}. Every number links to the raw row that it is from."
    )
    headlines = [
        headline
        for _, machine, group in groups
        for headline in _headlines([source for source in group if source.ok], machine.name)
    ]
    return Section("Summary", headlines, [text])


def _headlines(group: Sequence[Source], machine: str) -> list[Headline]:
    """The best of our rows of a benchmark on a machine, and how it stands beside each other implementation."""
    if not group:
        return []
    ours = [source for source in group if source.row.implementation == OURS] or group
    what = declared(ours[0].row.benchmark)
    metric = what.leading
    rated = _fit_to_lead(values_of(ours, metric))
    if not rated:
        return []
    best, value = (min if metric.better == "lower" else max)(rated, key=lambda pair: pair[1])
    basis = f"the best of {len(rated):,} rows like it" if len(rated) > 1 else ""
    if what.repeats:
        longest = max(repeats(source for source, _ in rated), key=len)
        seeds = values_of(longest, metric)
        best, value = seeds[0][0], fmean(value for _, value in seeds)
        basis = f"mean of {len(seeds):,} {what.repeats}{'s' * (len(seeds) > 1)}"
    detail, unit = f"{what.title}: {_case(best)}", metric.title
    ranks = number(best.row.case.get("simulate_ranks", 1)) or 1
    if ranks != 1 and metric.key == "samples_per_second":  # the others did not run
        value, unit = value / ranks, f"{unit} a rank"
        detail += f", one of {ranks:,.12g} ranks, the others simulated"
    detail += " (scaled down to fit)" if scaled_down(best.row) else ""
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
    found: dict[str, Headline] = {}
    ordered = sorted(group, key=_classes, reverse=True)
    for source in (one for one in ordered if one.row.implementation not in {OURS, *found}):
        first = reference_of(source, ordered)
        if first and (ratio := times_as_fast(first.row, source.row)):
            name = source.row.implementation
            one, two = (s.row.case.get("precision") for s in (first, source))
            beside = f", {one} beside its {two}" if one and two else ""
            detail = f"{declared(first.row.benchmark).title} {ratio}{beside}: {_case(first)}"
            text, unit = quotient_text(ratio.value), f"times as fast as {name}"
            found[name] = Headline(text, unit, detail, machine, _basis(first), first)
    return list(found.values())


def _classes(source: Source) -> float:
    return number(source.row.case.get("num_classes")) or 0.0


def _case(source: Source) -> str:
    """What a reader needs to know of a case: what the benchmark lets one sweep, and settings, where unusual."""
    fields = declared(source.row.benchmark).fields()
    keys = {name for name, data in fields.items() if data.get("sweeps") and name != "seed"}
    keys |= {"recipe", "backbone", "num_classes", "world_size", "precision", "settings"}
    case = source.row.case
    return case_text(case, [key for key in case if key in keys and (key not in _USUAL or _USUAL[key] != case[key])])


def _basis(source: Source, more: str = "") -> str:
    """Versions, and of how many steps."""
    environment, steps = source.row.environment, len(source.row.samples_ms)
    revision = str(environment.get("revision") or "")
    revision = re.sub(r"^([0-9a-f]{9})[0-9a-f]{31}(-dirty)?.*", r"\1\2", revision)
    named = {"PyTorch": environment.get("pytorch"), "CUDA": environment.get("cuda"), "revision": revision}
    words = [f"{name} {value}" for name, value in named.items() if value]
    words.append(f"n = {steps:,} step{'' if steps == 1 else 's'}" if steps else "n = 1 run")
    return ", ".join(filter(None, [*words, more, *source.busy]))
