"""Draw the pictures of the head's rows: python benchmarks/pictures.py [ROWS.jsonl] [DIRECTORY]

From ``benchmarks/results/head-cpu.jsonl`` into ``docs/assets``: cost against the number of classes, and the crossover
of full and sampled. Every point is the median of a row's samples; the bar is from the 10th to the 90th percentile.
"""

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megaclass.report.words import short
from megaclass.results.rows import Row, read_rows
from megaclass.results.stats import percentile

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results" / "head-cpu.jsonl"
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE.parent / "docs" / "assets"
    rows = [row for row in read_rows(source) if row.status == "ok" and row.benchmark == "head"]
    machine = rows[-1].environment
    note = (
        f"{machine['cpu']}, {machine['cpu_threads_usable']} cores, PyTorch {machine['pytorch']}; batch 128, D 512, "
        "bf16 products, fp32 storage unless said; medians of whole steps"
    )
    save(classes_figure(rows), target / "head-classes.png", note)
    save(crossover_figure(rows), target / "head-crossover.png", note)


def points(rows: list[Row], x: str, implementation: str = "megaclass", malloc: str = "", **case: object) -> list:
    """(x, row) of the rows that match, one for each x: the latest."""
    wanted = {"precision": "bf16", "storage": "fp32", "world_size": 1, "placement": "device", **case}
    if implementation != "megaclass":
        wanted = {**case, "world_size": 1, "malloc": malloc}
    found = {
        row.case[x]: row
        for row in rows
        if row.implementation == implementation and all(row.case.get(key) == value for key, value in wanted.items())
    }
    return sorted(found.items())


def draw(axes: Axes, found: list, colour: str, label: str, style: str = "o-") -> None:
    at = [x for x, _ in found]
    middle = [row.step_ms["p50"] for _, row in found]
    ends = [[percentile(row.samples_ms, percent) for _, row in found] for percent in (10, 90)]
    bars = [[abs(end - m) for end, m in zip(side, middle, strict=True)] for side in ends]
    axes.errorbar(at, middle, yerr=bars, fmt=style, color=colour, label=label, markersize=4, capsize=2)


def classes_figure(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    peer = ("arcface_torch", "tuned")
    lines = [
        (points(rows, "num_classes", sample_rate=1.0), BLUE, "megaclass, all classes", "o-"),
        (points(rows, "num_classes", sample_rate=0.1), GREEN, "megaclass, rate 0.1", "o-"),
        (points(rows, "num_classes", *peer, sample_rate=1.0), ORANGE, "arcface_torch, all", "s--"),
        (points(rows, "num_classes", *peer, sample_rate=0.1), GREY, "arcface_torch, rate 0.1", "s--"),
    ]
    for found, colour, label, style in lines:
        draw(time_axes, found, colour, label, style)
        memory_axes.plot(
            [x for x, _ in found],
            [row.memory_mb["process"] for _, row in found],
            style,
            color=colour,
            markersize=4,
        )
    storage = sorted({x for found, *_ in lines[:2] for x, _ in found})
    memory_axes.plot(storage, [x * 4096 / 2**20 for x in storage], ":", color="black", label="storage alone")
    time_axes.set(title="Time of a step", ylabel="ms", xscale="log", yscale="log", xlabel="classes")
    memory_axes.set(
        title="Peak memory above the idle process", ylabel="MiB", xscale="log", yscale="log", xlabel="classes"
    )
    for axes in (time_axes, memory_axes):
        axes.set_xticks(storage, [short(x) for x in storage])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def crossover_figure(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    found = points(rows, "sample_rate", num_classes=200_000)
    full = [row for rate, row in found if rate == 1.0]
    draw(axes, [(rate, row) for rate, row in found if rate < 1.0], GREEN, "sampled")
    if full:
        axes.axhline(full[0].step_ms["p50"], color=BLUE, label="all classes")
    axes.set(title="200,000 classes: where sampling pays", xlabel="sample rate", ylabel="ms a step", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def save(figure: Figure, path: Path, note: str) -> None:
    FigureCanvasAgg(figure)
    figure.supxlabel(note, fontsize=7, color=GREY)
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
