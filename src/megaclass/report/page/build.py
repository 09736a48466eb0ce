"""From rows to the document: what stands in a report, in which order."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megaclass.report.page.casecolumns import split_case
from megaclass.report.page.charts import pictures
from megaclass.report.page.document import (
    Block,
    Cell,
    Column,
    Document,
    Headlines,
    Line,
    Section,
    Table,
    columns,
    line,
)
from megaclass.report.page.earlier import earlier_section
from megaclass.report.page.headline import headlines
from megaclass.report.page.machines import Identity, Machine, machines_of
from megaclass.report.page.measures import BUSY, busy
from megaclass.report.page.published_tables import published_section
from megaclass.report.page.sources import Source
from megaclass.report.page.tables import KEEP, own_sections
from megaclass.report.page.words import case_text, digits, number
from megaclass.results.published import Report


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
    sections = [_summary(sources, mine, strangers), _machines(machines)]
    sections += [published_section(report, sources, mine) for report in reports]
    if earlier:
        sections.append(earlier_section(sources, earlier, machines))
    if drawn := pictures(sources, mine, reports):
        sections.append(Section("Curves", [_CURVES, *drawn]))
    sections += own_sections(sources, mine)
    sections.append(_problems(sources, mine))
    names = list(mine.values())
    where = names[0].name if len(names) == 1 else f"{len(names)} machines"
    return Document(f"Benchmark report: {where}", sections, everything)


_CURVES = (
    "Solid lines with dots: measured here, on the machine that the legend names. Dashed lines with squares: "
    "published by others. Dotted: what ideal scaling would give."
)


def _summary(
    sources: Sequence[Source], machines: Mapping[Identity, Machine], strangers: Sequence[Path]
) -> Section:
    blocks: list[Block] = []
    if found := headlines(sources, machines):
        blocks.append(Headlines(found))
    steps = sum(len(source.samples_ms) for source in sources)
    files = len({source.path for source in sources})
    status = Counter(source.row.status for source in sources)
    days = sorted({str(source.row.measured_at)[:10] for source in sources if source.row.measured_at})
    when = f", measured on {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") if days else ""
    blocks.append(
        f"{len(sources):,} rows of {files} file{'' if files == 1 else 's'}, {steps:,} timed steps in all{when}. "
        + ", ".join(f"{count:,} {name}" for name, count in status.most_common())
        + ". Every number links to the raw row that it is from."
    )
    counts = Counter((source.row.benchmark, source.machine) for source in sources)
    heads = [*columns(("Benchmark", "Machine")), Column("Rows"), Column("ok"), Column("Steps")]
    lines = []
    for (benchmark, machine), count in counts.items():
        group = [s for s in sources if (s.row.benchmark, s.machine) == (benchmark, machine)]
        numbers = count, sum(s.ok for s in group), sum(len(s.samples_ms) for s in group)
        lines.append(
            Line((Cell(benchmark), Cell(machines[machine].name), *(Cell(f"{n:,}", value=n) for n in numbers)))
        )
    blocks.append(Table("What was measured", heads, lines))
    if strangers:
        blocks.append(
            "Left aside, as they hold no rows of a benchmark: " + ", ".join(p.name for p in strangers) + "."
        )
    return Section("Summary", blocks)


def _machines(machines: Mapping[Identity, Machine]) -> Section:
    tables = [
        Table(
            f"Server spec: {machine.name}", columns(("Key", "Value")), [line(pair) for pair in machine.spec]
        )
        for machine in machines.values()
    ]
    return Section("Machines" if len(tables) > 1 else "Machine", tables)


def _problems(sources: Sequence[Source], machines: Mapping[Identity, Machine]) -> Section:
    """Cases without a number, those that were scaled down, and numbers taken while others used the machine."""
    blocks: list[Block] = []
    lost = [source for source in sources if not source.ok]
    if lost:
        heads = columns(("Benchmark", "Machine", "Implementation", "Case", "Status", "Reason"))
        cases, remarks = _told([(source, source.row.asked or source.row.case) for source in lost])
        lines = [
            _lost(source, machines[source.machine].name, case)
            for source, case in zip(lost, cases, strict=True)
        ]
        blocks.append(Table("Left out and failed", heads, lines, remarks=remarks))
    else:
        blocks.append("No case was left out, and none failed.")
    if disturbed := [source for source in sources if busy([source])]:
        heads = [*columns(("Benchmark", "Machine", "Implementation", "Case")), Column("CPU wait, %")]
        cases, remarks = _told([(source, source.row.case) for source in disturbed])
        lines = [
            _busy(source, machines[source.machine].name, case)
            for source, case in zip(disturbed, cases, strict=True)
        ]
        remarks.insert(0, f"{BUSY[0].upper()}{BUSY[1:]}.")
        blocks.append(Table("Other programs were busy", heads, lines, remarks=remarks))
    return Section("Left out, failed and disturbed", blocks)


def _told(pairs: Sequence[tuple[Source, Mapping[str, Any]]]) -> tuple[list[str], list[str]]:
    """Of each case what tells it from others of its benchmark, and in sentences what these share."""
    keys, remarks = {}, []
    for benchmark in dict.fromkeys(source.row.benchmark for source, _ in pairs):
        cases = [case for source, case in pairs if source.row.benchmark == benchmark]
        keys[benchmark], same = split_case(cases, KEEP.get(benchmark, ()))
        remarks += [f"The same in all of {benchmark}: {same}."] if same else []
    return [case_text(case, keys[source.row.benchmark]) for source, case in pairs], remarks


def _lost(source: Source, machine: str, case: str) -> Line:
    row = source.row
    cells = [Cell(row.benchmark), Cell(machine), Cell(row.implementation), Cell(case)]
    return Line((*cells, Cell(row.status, (source,)), Cell(row.reason)))


def _busy(source: Source, machine: str, case: str) -> Line:
    row = source.row
    waited = number(row.cpu_wait_percent)
    cells = [Cell(row.benchmark), Cell(machine), Cell(row.implementation), Cell(case)]
    return Line((*cells, Cell(digits(waited), (source,), (), waited)))
