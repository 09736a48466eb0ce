"""Sheets of images: samples of a data set, with how many images classes have, and images with what a model says.

Shapes: S = side of an image in pixels, K = classes, H, W = size of a sheet in pixels.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from megaclass.report.table import score_text

BLUE, GREY = "#0072B2", "#555555"
DPI = 100
_GAP = 4  # pixels between images
_CAPTION, _MARGIN, _TITLE, _PLOT = 190, 24, 64, 260  # pixels
# Up to so many classes each has a bar of its own.
_BARS = 40
# Of predictions: columns of cards, guesses on one, pixels of these, and the colours of bars and their ground.
_CARDS, _GUESSES, _GUESSES_WIDE, _NUMBER = 3, 5, 270, 62
_BAR, _GROUND = (0xB3, 0xD4, 0xE8), (0xF2, 0xF2, 0xF2)

Card = tuple[str, np.ndarray, Sequence[Mapping[str, Any]]]
"""An image's name, its picture, uint8 SxSx3, and the guesses, as :func:`megaclass.report.table.prediction_table`
takes them."""


class SheetRow(Protocol):
    """A class: its name, how many images it has, and some of them, uint8 SxSx3 RGB."""

    @property
    def name(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def images(self) -> Sequence[np.ndarray]: ...


def draw_sheet(path: str | Path, title: str, rows: Sequence[SheetRow], counts_K: np.ndarray) -> None:
    """Write a PNG: a row of images for each of ``rows``, and the distribution of ``counts_K``, the images of
    each class, below. Every image takes as many pixels as it has."""
    side = rows[0].images[0].shape[0]
    columns = max(len(row.images) for row in rows)
    width = max(_CAPTION + columns * (side + _GAP) + 2 * _MARGIN, 760)
    grid = len(rows) * (side + _GAP)
    height = _TITLE + grid + _PLOT + 2 * _MARGIN
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def place(left: float, top: float, wide: float, high: float) -> tuple[float, float, float, float]:
        """Pixels from the upper left corner, as matplotlib has them."""
        return left / width, 1 - (top + high) / height, wide / width, high / height

    def write(left: float, top: float, content: str, **style: Any) -> Text:
        return figure.text(left / width, 1 - top / height, content, parse_math=False, **style)

    headline, _, subtitle = title.partition("\n")
    mosaic = np.full((grid, columns * (side + _GAP), 3), 255, np.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font lacks it: a box stands in for it
        _shorten(write(_MARGIN, 22, headline, fontsize=14, weight="bold", va="center"), width - 2 * _MARGIN)
        write(_MARGIN, 46, subtitle, fontsize=10, color=GREY, va="center")
        for number, row in enumerate(rows):
            top = number * (side + _GAP)
            for column, image in enumerate(row.images):
                left = column * (side + _GAP)
                mosaic[top : top + side, left : left + side] = image
            centre = _TITLE + top + side / 2
            name = write(_MARGIN, centre - 2, row.name, fontsize=10.5, weight="bold", va="bottom")
            _shorten(name, _CAPTION - 2 * _GAP)
            count = f"{row.count:,} image{'s' if row.count > 1 else ''}"
            write(_MARGIN, centre + 2, count, fontsize=9, color=GREY, va="top")
        pictures = figure.add_axes(place(_MARGIN + _CAPTION, _TITLE, mosaic.shape[1], grid))
        pictures.imshow(mosaic, interpolation="none", aspect="auto")
        pictures.axis("off")
        top = _TITLE + grid + _MARGIN + 24
        _distribution(
            figure.add_axes(place(_MARGIN + 50, top, width - 2 * _MARGIN - 60, _PLOT - 70)), counts_K
        )
        figure.savefig(path, format="png", dpi=DPI)


def draw_predictions(path: str | Path, cards: Sequence[Card]) -> None:
    """Write a PNG: every image beside the first of its guesses, each with a bar as long as its score is of 1."""
    side = cards[0][1].shape[0]
    columns = min(_CARDS, len(cards))
    wide, high = side + _GUESSES_WIDE + _MARGIN, side + 2 * _MARGIN
    width, height = columns * wide + _MARGIN, -(-len(cards) // columns) * high + _GAP
    sheet_HWC = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def write(left: float, top: float, content: str, **style: Any) -> Text:
        return figure.text(left / width, 1 - top / height, content, parse_math=False, va="center", **style)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font lacks it: a box stands in for it
        for number, (name, picture, guesses) in enumerate(cards):
            left, top = _MARGIN + number % columns * wide, number // columns * high + _MARGIN
            _shorten(write(left, top - 8, name, fontsize=8, color=GREY), wide - _MARGIN)
            sheet_HWC[top : top + side, left : left + side] = picture
            left, line = left + side + 2 * _GAP, side // _GUESSES
            longest = _GUESSES_WIDE - 2 * _GAP
            for row, guess in enumerate(guesses[:_GUESSES]):
                below = top + row * line
                score = guess.get("probability", guess.get("cosine"))
                filled = round(longest * max(0.0, score or 0.0))
                sheet_HWC[below : below + line - 3, left : left + longest] = _GROUND
                sheet_HWC[below : below + line - 3, left : left + filled] = _BAR
                words = guess["name"] or guess["class"] or f"class {guess['label']}"
                middle = below + line / 2 - 2
                text = write(left + _GAP, middle, words, fontsize=8.5)
                _shorten(text, longest - _NUMBER, keep="beginning")
                write(left + longest - _GAP, middle, score_text(guess), fontsize=8.5, ha="right")
        ground = figure.add_axes((0, 0, 1, 1), zorder=-1)
        ground.imshow(sheet_HWC, interpolation="none", aspect="auto")
        ground.axis("off")
        figure.savefig(path, format="png", dpi=DPI)


def _distribution(axes: Axes, counts_K: np.ndarray) -> None:
    """Bars of the classes if there are few, else how many of those that have images have so many."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if len(counts_K) <= _BARS:
        axes.bar(np.arange(len(counts_K)), counts_K, width=0.8, color=BLUE)
        axes.set(xlabel="class", ylabel="images", xlim=(-0.6, len(counts_K) - 0.4))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=_BARS // 2, integer=True))
        axes.set_title("Images a class", loc="left", fontsize=11, weight="bold")
    else:
        empty = int((counts_K == 0).sum())
        counts_K = counts_K[counts_K > 0]  # as in the table: mean and median are of these
        most = int(counts_K.max())
        if most > 100:  # a long tail
            edges = np.unique(np.round(np.geomspace(1, most + 1, 50))).tolist()
            axes.set_xscale("log")
        else:
            edges = (np.arange(counts_K.min(), most + 2) - 0.5).tolist()
        axes.hist(counts_K, bins=edges, color=BLUE, edgecolor="white", linewidth=0.4)
        axes.set(xlabel="images of a class", ylabel="classes")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        mean, median = float(counts_K.mean()), float(np.median(counts_K))
        axes.axvline(mean, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            f" mean {mean:,.1f}, median {median:,.0f}", (mean, 0.97), xycoords=("data", "axes fraction"), va="top",
            fontsize=9, color=GREY,
        )  # fmt: skip
        others = f" ({empty:,} more have none)" if empty else ""
        axes.set_title(
            f"How many classes have how many images{others}", loc="left", fontsize=11, weight="bold"
        )
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def _shorten(text: Text, most: float, keep: str = "end") -> None:
    """Leave of a text what fits into ``most`` pixels: its end, which tells more of a path than its beginning."""
    content = "".join(letter if letter.isprintable() else "?" for letter in text.get_text())
    text.set_text(content)
    while text.get_window_extent().width > most:
        content = content[1:] if keep == "end" else content[:-1]
        text.set_text(f"…{content}" if keep == "end" else f"{content}…")
