"""A picture as inline SVG, whose colours are those of the page: dark where the page is dark."""

import math
import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from megaclass.report.page.document import Picture, Series
from megaclass.report.page.words import short

# Colours that matplotlib writes and the page's own take the place of. One's own curves and published ones each
# have a row of hues.
_INK, _GRID = "#010101", "#020202"
HUES = 8
_OWN = [f"#0a0a{place:02x}" for place in range(HUES)]
_PUBLISHED = [f"#0b0b{place:02x}" for place in range(HUES)]
_IDEAL = "#030303"
_VARIABLES = (
    {_INK: "currentColor", _GRID: "var(--grid)", _IDEAL: "var(--muted)"}
    | {colour: f"var(--own-{place})" for place, colour in enumerate(_OWN)}
    | {colour: f"var(--published-{place})" for place, colour in enumerate(_PUBLISHED)}
)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "font.size": 9.5,
    "text.parse_math": False,
}


def draw(picture: Picture, name: str) -> str:
    """An ``<svg>`` element. name: of this picture alone in the page; it begins every id in it."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        _axes(axes, picture)
        for series, colour in zip(picture.series, colours(picture.series), strict=True):
            _curve(axes, series, colour)
        _limits(axes, picture)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), name)


def colours(series: Sequence[Series]) -> list[str]:
    """As matplotlib writes them: each of the two kinds goes through its own hues."""
    places = {False: 0, True: 0}
    found = []
    for one in series:
        if one.ideal:
            found.append(_IDEAL)
            continue
        row = _PUBLISHED if one.published else _OWN
        found.append(row[places[one.published] % HUES])
        places[one.published] += 1
    return found


def css_colours(series: Sequence[Series]) -> list[str]:
    """The same as the page has them, for the legend."""
    return [_VARIABLES[colour] for colour in colours(series)]


def _axes(axes: Axes, picture: Picture) -> None:
    axes.set(xlabel=picture.x_label, ylabel=picture.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.set_axisbelow(True)


def _curve(axes: Axes, series: Series, colour: str) -> None:
    x, y = zip(*series.points, strict=True)
    if series.ideal:
        axes.plot(x, y, color=colour, linewidth=1, linestyle=":")
    elif series.published:
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=1.4,
            linestyle="--",
            marker="s",
            markersize=4,
            markerfacecolor="none",
        )
    else:
        axes.plot(x, y, color=colour, linewidth=2, marker="o", markersize=4.5)


def _limits(axes: Axes, picture: Picture) -> None:
    xs = sorted({x for series in picture.series for x, _ in series.points})
    ys = [y for series in picture.series for _, y in series.points]
    tick = FuncFormatter(lambda value, _: _count(round(value, 6)))
    if picture.x_base:
        axes.set_xscale("log", base=picture.x_base)
        axes.xaxis.set_minor_locator(NullLocator())
        if len(xs) <= 8:
            axes.set_xticks(_apart(xs))
    binary = FuncFormatter(lambda value, _: _binary(value))
    axes.xaxis.set_major_formatter(binary if picture.x_label == "bytes" else tick)
    # A curve of a small machine below one of eight GPUs would lie on the axis.
    y_base = picture.y_base or (10 if 0 < 50 * min(ys) < max(ys) else 0)
    if y_base:
        axes.set_yscale("log", base=y_base)
        if max(ys) < 1000 * min(ys):  # a tick a decade would be too few
            axes.yaxis.set_major_locator(LogLocator(y_base, subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.08 * max(ys))
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(tick)


def _apart(xs: Sequence[float]) -> list[float]:
    """Those of the positive, rising numbers whose labels do not run into one another on a logarithmic axis."""
    whole = math.log(xs[-1] / xs[0])
    kept = [xs[0]]
    for x in xs[1:]:
        if math.log(x / kept[-1]) >= 0.11 * whole:
            kept.append(x)
    return kept


def _count(value: float) -> str:
    """618K and 2M, but 1,024."""
    text = short(value)
    return f"{value:,.0f}" if "." in text and 1000 <= value < 1e5 else text


def _binary(value: float) -> str:
    for size, suffix in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if value >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def _inline(svg: str, name: str) -> str:
    """What HTML takes: no prolog, no metadata, the page's colours and fonts, ids that no other picture has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL
    )  # it would rule the page
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = re.sub(r"(font-family: |font: [\d.]+px )[^;\"]*", r"\1var(--sans)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" class="chart">', svg, count=1
    ).strip()
