"""Write the generated parts of docs/performance.md from committed rows: python benchmarks/performance.py [PAGE]

A part stands between ``<!-- NAME -->`` and ``<!-- end NAME -->`` and is made from the rows in ``benchmarks/results/``
that ``FILES`` names; the rest of the page is written by hand.
"""

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megaclass.bench.roofline.bound import bound
from megaclass.bench.roofline.machines import MACHINES, Peaks
from megaclass.bench.roofline.plan import config_of
from megaclass.bench.roofline.reached import Reached, reached
from megaclass.config import options
from megaclass.report.compare import OURS
from megaclass.report.page.casecolumns import differing_settings
from megaclass.report.page.peers import spread, times_as_fast
from megaclass.report.page.words import classes_text
from megaclass.report.roofline import by_kind, by_stage, reached_sheet, speeds, title
from megaclass.report.scaling import LINKS, weak_scaling
from megaclass.report.texttable import TextTable, markdown, number
from megaclass.results.rows import Row, held_mb, read_rows, setting_text

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
RESULTS = HERE / "results"
FILES = ("roofline-*.jsonl", "train-*.jsonl", "infer-*.jsonl")
# Backbone, pixels, images of a step on a GPU and on a CPU.
MODELS = (("iresnet50", 112, 1024, 64), ("resnet50", 224, 256, 32))
NONE_YET = "No rows yet; [how to measure](#measure-it-yourself)."


def main() -> None:
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(render(page.read_text(), committed_rows()))
    print(page)


def committed_rows() -> list[Row]:
    return [row for name in FILES for path in sorted(RESULTS.glob(name)) for row in read_rows(path)]


def render(page: str, rows: Sequence[Row]) -> str:
    for name, write in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page has not one part between {begin} and {end}")
        head, rest = page.split(begin)
        page = f"{head}{begin}\n\n{write(rows)}\n\n{end}{rest.split(end)[1]}"
    return page


def numbers(rows: Sequence[Row]) -> str:
    """The fastest row of each backbone on each machine, with its machine, versions and number of steps."""
    best: dict[tuple[object, ...], Row] = {}
    for row in ours(rows):
        case = row.case
        if case.get("simulate_ranks", 1) == 1:
            key = (machine_of(row), row.benchmark, case["backbone"], case["image_size"], case["num_classes"])
            best[key] = max(best.get(key, row), row, key=lambda one: one.samples_per_second or 0)
    return "\n".join(headline(row, rows) for row in best.values()) or NONE_YET


def headline(row: Row, rows: Sequence[Row]) -> str:
    case, found = row.case, row.environment
    what = f"{'training' if row.benchmark == 'train' else 'inference'} of {case['backbone']}, {case['image_size']} px"
    if case["num_classes"]:
        what += f", {classes_text(case)}"
    batch = case.get("batch_size") or case["global_batch_size"]
    versions = f"PyTorch {found['pytorch']}" + (f", CUDA {found['cuda']}" if found.get("cuda") else "")
    one = part_reached(row, rows)
    part = f"; {one.fraction:.0%} of the bound" if one else ""
    return (
        f"- **{number(row.samples_per_second or 0)} images/s**: {what}, batch {batch:,}, {case['precision']}; "
        f"{machine_of(row)}, {versions}; median of n = {len(row.samples_ms)} steps{part}"
    )


def roofline(rows: Sequence[Row]) -> str:
    """Both backbones on an H100, as its data sheet has it, and on every CPU that was measured."""
    machines = [(MACHINES["h100"], 2), *((peaks, 3) for peaks in measured_peaks(rows).values())]
    bounds = [
        bound(config_of(model[0], model[1]), "bf16", model[place], peaks)
        for peaks, place in machines
        for model in MODELS
        if "bf16" in peaks.flops_per_second
    ]
    tables = [f"**{title(one)}**\n\n{markdown(by_stage(one))}\n\n{markdown(by_kind(one))}" for one in bounds]
    return "\n\n".join([markdown(speeds(bounds)), *tables])


def fractions(rows: Sequence[Row]) -> str:
    found = [one for row in rows if (one := part_reached(row, rows))]
    by_machine: dict[str, list[Reached]] = {}
    for one in found:
        by_machine.setdefault(f"{machine_of(one.row)}: {peaks_text(one.bound.peaks)}", []).append(one)
    return (
        "\n\n".join(f"**{name}**\n\n{markdown(reached_sheet(part))}" for name, part in by_machine.items())
        or NONE_YET
    )


def ablation(rows: Sequence[Row]) -> str:
    """A table for each group of rows of ours that took turns and differ in their settings."""
    return "\n\n".join(ablation_tables(rows)) or NONE_YET


def ablation_tables(rows: Sequence[Row]) -> Iterator[str]:
    for base, parts in itertools.groupby(ablated(rows), lambda found: found[0]):
        changes = list(parts)
        lines = [["as it is", *measured_cells(base, base)]]
        lines += [[changed, *measured_cells(row, base)] for _, row, changed in changes]
        as_it_is = ", ".join(
            f"{key}={said(base, key)}"
            for key in differing_settings([base.case, *(row.case for _, row, _ in changes)])
        )
        head = ("changed", "step ms", "spread", "times as fast", "MiB", "n")
        yield f"**{case_text(base)}**; as it is: {as_it_is}\n\n{markdown(TextTable('', head, lines))}"


def ablated(rows: Iterable[Row]) -> Iterator[tuple[Row, Row, str]]:
    """Of our rows that took turns and differ in their settings: the first, another, and what that changes."""
    for base, *others in groups_of(row for row in rows if row.implementation == OURS):
        for row in others:
            if changed := differing_settings([base.case, row.case]):
                yield base, row, " ".join(f"{key}={said(row, key)}" for key in changed)


def no_help(rows: Sequence[Row]) -> str:
    """What the tables of the ablation say against."""
    lines = []
    for base, row, changed in ablated(rows):
        ratio = times_as_fast(row, base) if row.status == "ok" else None
        if ratio and ratio.low <= 1 and not _switched_off(row, base):
            lines.append(f"- `{changed}`: {ratio} times as fast; {case_text(base)}")
    return "\n".join(lines) or ("None of them." if any(ablated(rows)) else NONE_YET)


def _switched_off(row: Row, base: Row) -> bool:
    """Whether all that the row changes is what the defaults have on, or brings a default back."""
    defaults = {key: field.default for key, field in options().items()}
    changed = differing_settings([base.case, row.case])
    return all(
        row.case["settings"][key] == defaults[key]
        or defaults[key] is True
        or row.case["settings"][key] == "none"
        for key in changed
    )


def beside(rows: Sequence[Row]) -> str:
    """A table for each group of rows of several implementations that took turns."""
    tables = []
    for group in groups_of(rows):
        mine = next((row for row in group if row.implementation == OURS), None)
        if mine is None or all(row.implementation == OURS for row in group):
            continue
        # How many times as fast as this line ours is.
        lines = [
            [row.implementation, row.case["precision"], *measured_cells(mine, row, of=row)] for row in group
        ]
        head = ("by", "type", "step ms", "spread", "ours is times as fast", "MiB", "n")
        tables.append(f"**{case_text(mine)}**\n\n{markdown(TextTable('', head, lines, words=2))}")
    return "\n\n".join(tables) or NONE_YET


def weak(rows: Sequence[Row]) -> str:
    sheets = weak_scaling(rows, list(LINKS.values()))
    links = [
        [link.text, number(link.bytes_per_second / 1e9), number(link.latency_s * 1e6)]
        for link in LINKS.values()
    ]
    prices = markdown(TextTable("", ("link", "GB/s each way", "µs a round, assumed"), links))
    return "\n\n".join(
        [prices, *(f"**{sheet.title}**\n\n{markdown(sheet)}" for sheet in sheets)] + [NONE_YET] * (not sheets)
    )


PARTS = {
    "numbers": numbers,
    "roofline": roofline,
    "reached": fractions,
    "ablation": ablation,
    "no help": no_help,
    "beside": beside,
    "weak scaling": weak,
}


def ours(rows: Iterable[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if row.status == "ok" and row.implementation == OURS and row.benchmark in ("train", "infer")
    ]


def groups_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Of training, what took turns."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.benchmark == "train" and row.group:
            groups.setdefault(row.group, []).append(row)
    return [group for group in groups.values() if len(group) > 1 and group[0].status == "ok"]


def measured_cells(mine: Row, other: Row, of: Row | None = None) -> list[str]:
    """Time, spread, memory and number of steps of ``of``, and how many times as fast as ``other`` ``mine`` is."""
    row = of or mine
    if row.status != "ok":
        return [f"{row.status}: {row.reason}", "", "", "", ""]
    apart, ratio = spread(row), times_as_fast(mine, other) if mine is not other else None
    memory = held_mb(row.memory_mb)
    return [
        number(row.step_ms["p50"]),
        "" if apart is None else f"{apart:.1%}",
        str(ratio or 1),
        "" if memory is None else number(memory),
        str(len(row.samples_ms)),
    ]


def said(row: Row, key: str) -> str:
    """As a command line says it."""
    return setting_text(row.case["settings"].get(key, ""))


def case_text(row: Row) -> str:
    case = row.case
    return (
        f"{case['backbone']}, {case['image_size']} px, {classes_text(case)}, batch "
        f"{case['global_batch_size']:,}, {case['precision']}, {machine_of(row)}"
    )


def machine_of(row: Row) -> str:
    found = row.environment
    if found.get("gpu"):
        return str(found["gpu"])
    threads = row.case.get("threads", 0)
    return f"{found['cpu']}, {threads} thread{'s' * (threads != 1)}"


def peaks_text(peaks: Peaks) -> str:
    flops = ", ".join(f"{kind} {value / 1e12:,.3g} TFLOP/s" for kind, value in peaks.flops_per_second.items())
    return f"{flops}, {number(peaks.bytes_per_second / 1e9)} GB/s ({peaks.source})"


def measured_peaks(rows: Iterable[Row]) -> dict[str, Peaks]:
    """By machine, the latest of each precision."""
    found: dict[str, Peaks] = {}
    for row in rows:
        if row.benchmark == "roofline" and row.case["machine"] == "here":
            name = machine_of(row)
            flops = found[name].flops_per_second if name in found else {}
            flops = flops | {row.case["precision"]: row.work["peak_flops_per_second"]}
            found[name] = Peaks(name, flops, row.work["peak_bytes_per_second"], "measured")
    return found


def part_reached(row: Row, rows: Sequence[Row]) -> Reached | None:
    """By the peaks of its machine: as measured, or as the data sheet of its GPU has them."""
    if row.benchmark == "roofline" or row.status != "ok":
        return None
    peaks = measured_peaks(rows).get(machine_of(row))
    gpu = re.search("H100|H200|A100|V100", str(row.environment.get("gpu")))
    if gpu:
        peaks = MACHINES[gpu[0].lower()]
    return reached(row, peaks) if peaks else None


if __name__ == "__main__":
    main()
