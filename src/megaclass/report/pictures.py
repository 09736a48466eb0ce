"""Curves of a benchmark's headline metric over the numbers that were swept, beside published ones, as SVG."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any, NamedTuple

from megaclass.bench.case import Metric
from megaclass.report.document import Picture, Series
from megaclass.report.sources import Identity, Machine, Source
from megaclass.report.words import (
    OURS,
    declared,
    effort,
    flat,
    key_of,
    name_of,
    per_device,
    read,
    scaled_down,
    short,
    value_text,
)
from megaclass.results.published import Report
from megaclass.results.rows import number

FEWEST = 3  # values that make a curve worth its room
_MOST = 8  # curves measured here in a picture, and published ones: beyond, nobody tells them apart
# Never tell curves apart. Of one device alone there are no collectives, of several they are included.
_ASIDE = ("threads", "seed", "device", "collectives")

# Hues that read on white and on dark paper, and stay apart for colour-blind readers (after Okabe and Ito, 2008).
COLOURS = ("#2f8fd0", "#e0762b", "#1fa37c", "#c75fa3", "#8a76d6", "#a8861f", "#2aa4b3", "#d9545f")
PUBLISHED = ("#87919f", "#a8935f", "#76a08d", "#ab86a2", "#968dbd", "#b58f7d", "#749faa", "#929292")
INK = {"light": ("#1a1d23", "#dfe3e9"), "dark": ("#e6e9ee", "#333a45")}  # of text, and of the grid
_STYLES: dict[str, dict[str, Any]] = {
    "own": {"marker": "o", "linewidth": 2, "markersize": 4.5},
    "published": {
        "marker": "s",
        "linestyle": "--",
        "linewidth": 1.4,
        "markersize": 4,
        "markerfacecolor": "none",
    },
    "ideal": {"linestyle": ":", "linewidth": 1},
}


class _Point(NamedTuple):
    """owner: the machine, or whose number it is. params: what its curve is of. table: that published it, if any."""

    owner: str
    params: Mapping[str, Any]
    x: float
    y: float
    table: str = ""


def pictures(
    sources: Sequence[Source], machines: Mapping[Identity, Machine], reports: Sequence[Report]
) -> list[Picture]:
    """Of each benchmark, and of each recipe, a picture for every swept number of which a curve has several values."""
    found: list[Picture] = []
    for benchmark in dict.fromkeys(source.row.benchmark for source in sources):
        what = declared(benchmark)
        rows = [source for source in sources if source.ok and source.row.benchmark == benchmark]
        for x in (name for name, data in what.fields().items() if data.get("sweeps")):
            points = list(_own(what.leading, x, rows, machines))
            theirs = [point for report in reports for point in _published(benchmark, x, report)]
            for task in dict.fromkeys(point.params.get("recipe") for point in points):
                alike = [p for p in (*points, *theirs) if p.params.get("recipe") == task]
                title = f"{what.title} by {name_of(x)}" + (f": {task}" if task else "")
                found += _pictures(title, x, what.leading.title, _curves(alike))
    return found


def _pictures(title: str, x: str, y_label: str, curves: Sequence[Series]) -> Iterator[Picture]:
    """One picture, or several where there are many curves."""
    mine = [curve for curve in curves if curve.kind == "own"]
    published = [curve for curve in curves if curve.kind == "published"]
    theirs = [replace(curve, colour=colour) for curve, colour in zip(published, PUBLISHED, strict=False)]
    parts = [mine[start : start + _MOST] for start in range(0, len(mine), _MOST)]
    for place, part in enumerate(parts, start=1):
        ours = [replace(curve, colour=colour) for curve, colour in zip(part, COLOURS, strict=False)]
        ideal = [_ideal(curve) for curve in part] if x == "world_size" else []
        several = f" ({place} of {len(parts)})" if len(parts) > 1 else ""
        yield Picture(title + several, name_of(x), y_label, [*ours, *theirs, *ideal])


def _own(metric: Metric, x: str, rows: Sequence[Source], machines: Mapping[Identity, Machine]) -> Iterator[_Point]:
    """Of what was measured again the latest comes last."""
    for source in sorted(rows, key=lambda source: source.age):
        case = flat(source.row.case)
        at, value = number(case.get(x)), read(metric, source.row)
        simulated = x == "world_size" and case.get("simulate_ranks", 1) != 1
        if at and value and min(at, value) > 0 and not simulated:
            params = _params(x, case) | {"fit": "scaled down to fit" if scaled_down(source.row) else ""}
            params["by"] = "" if source.row.implementation == OURS else source.row.implementation
            yield _Point(machines[source.machine].name, params, at, value)


def _published(benchmark: str, x: str, report: Report) -> Iterator[_Point]:
    for table in (table for table in report.tables if table.benchmark == benchmark):
        for cell, column in (pair for row in table.rows for pair in zip(row, table.columns, strict=True)):
            at, headline = number(cell.case.get(x)), column.measure == declared(benchmark).headline
            if column.kind == "value" and headline and at and cell.value:
                owner = f"published: {report.machines[cell.machine].title}"
                yield _Point(owner, _params(x, cell.case), at, cell.value, table.title)


def _params(x: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """What the curve is of: the case without x. Weak scaling keeps the batch of a device."""
    aside = {x, *_ASIDE, *effort()}
    params = {key: value for key, value in case.items() if key not in aside}
    if x == "world_size" and (batch := per_device(case)):
        params["batch a device"] = batch
        del params["global_batch_size"]
    return params


def _curves(points: Sequence[_Point]) -> list[Series]:
    """Named by whose they are and by what tells them apart; without colours."""
    groups: dict[str, list[_Point]] = {}
    for point in points:
        groups.setdefault(key_of([point.owner, point.table, point.params]), []).append(point)
    kept = [group for group in groups.values() if len({point.x for point in group}) >= FEWEST]
    keys = dict.fromkeys(key for group in kept for key in group[0].params)
    # What one has and another lacks (a published case says less) tells nothing apart.
    values = {key: {key_of(g[0].params[key]) for g in kept if key in g[0].params} for key in keys}
    told = [key for key in keys if len(values[key]) > 1 or key in ("fit", "by")]
    curves = []
    for group in kept:
        first, words = group[0], [group[0].owner]
        for key, value in ((key, first.params.get(key)) for key in told):
            if value not in (None, ""):  # a name says itself what it is of; a number does not
                words.append(value if isinstance(value, str) else f"{name_of(key)} {value_text(key, value)}")
        line = sorted({point.x: point.y for point in group}.items())  # the last of what was measured again
        curves.append(Series(", ".join(words), line, "published" if first.table else "own"))
    return curves


def _ideal(series: Series) -> Series:
    (x0, y0), last = series.points[0], series.points[-1][0]
    return Series("ideal scaling", [(x0, y0), (last, y0 * last / x0)], "ideal", PUBLISHED[0])


def draw(picture: Picture, scheme: str) -> str:
    """An SVG as an address (``data:``), for white or for dark paper."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink, grid = INK[scheme]
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": picture.title, "text.parse_math": False}
    style |= {"font.size": 9.5, "font.family": "sans-serif", "text.color": ink, "axes.labelcolor": ink}
    style |= {"axes.edgecolor": grid, "grid.color": grid, "xtick.labelcolor": ink, "ytick.labelcolor": ink}
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=picture.x_label, ylabel=picture.y_label, axisbelow=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(linewidth=0.7)
        for series in picture.series:
            axes.plot(*zip(*series.points, strict=True), color=series.colour, **_STYLES[series.kind])
        _scale(axes, picture)
        content = BytesIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(content.getvalue()).decode()}"


def _scale(axes: Any, picture: Picture) -> None:
    """Logarithmic where the values are far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    xs = sorted({x for series in picture.series for x, _ in series.points})
    ys = [y for series in picture.series for _, y in series.points]
    if xs[-1] >= 8 * xs[0]:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        kept = xs[:1]  # ticks whose labels do not run into one another
        for x in xs[1:]:
            if math.log(x / kept[-1]) >= 0.11 * math.log(xs[-1] / xs[0]):
                kept.append(x)
        axes.set_xticks(kept)
    if max(ys) >= 8 * min(ys):
        axes.set_yscale("log", base=10)
        if max(ys) < 1000 * min(ys):  # a tick a decade would be too few
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.08 * max(ys))
        axes.yaxis.set_major_locator(MaxNLocator(6))
    tick = FuncFormatter(lambda value, _: _count(round(value, 6)))
    axes.xaxis.set_major_formatter(tick)
    axes.yaxis.set_major_formatter(tick)


def _count(value: float) -> str:
    """618K and 2M, but 1,024."""
    text = short(value)
    return f"{value:,.0f}" if "." in text and 1000 <= value < 1e5 else text
