"""Sheets of images: samples of a data set, with how many images classes have, and images with what a model says.

Shapes: S = side of an image in pixels, K = classes, H, W = size of a sheet in pixels, C = 3 colours.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from megaclass.report.console import score_text

if TYPE_CHECKING:
    from megaclass.data.tools.info import ClassSample

BLUE, GREY = "#0072B2", "#555555"
DPI = 100
_GAP = 4  # pixels between images
_CAPTION, _MARGIN, _TITLE, _PLOT = 190, 24, 64, 260  # pixels
# Of predictions: columns of cards, guesses on one, pixels of these, and the colours of bars and their ground.
_CARDS, _GUESSES, _GUESSES_WIDE, _NUMBER = 3, 5, 270, 62
_GUESS: dict[str, Any] = {"fontsize": 8.5, "va": "center"}
_BAR, _GROUND = (0xB3, 0xD4, 0xE8), (0xF2, 0xF2, 0xF2)

Card = tuple[str, Any, Sequence[Mapping[str, Any]]]
"""An image's name, its picture, uint8 SxSx3, and the guesses, as :func:`megaclass.report.console.prediction_table`
takes them."""


class _Sheet:
    """A white sheet of so many pixels: every image on it takes as many pixels as it has."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels_HWC = np.full((height, width, 3), 255, np.uint8)
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def paste(self, left: int, top: int, image_HWC: np.ndarray) -> None:
        height, width = image_HWC.shape[:2]
        self.pixels_HWC[top : top + height, left : left + width] = image_HWC

    def write(self, left: float, top: float, text: str, most: float, keep: str = "end", **style: Any) -> None:
        """A line from the upper left corner, of which as much is left as fits into ``most`` pixels: its end, which
        tells more of a path than its beginning."""
        height, width = self.pixels_HWC.shape[:2]
        made = self.figure.text(left / width, 1 - top / height, text, parse_math=False, **style)
        _shorten(made, most, keep)


@contextlib.contextmanager
def _sheet(path: str | Path, width: int, height: int) -> Iterator[_Sheet]:
    """A sheet that is written as a PNG when all is on it."""
    sheet = _Sheet(width, height)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font lacks it: a box stands in for it
        yield sheet
        ground = sheet.figure.add_axes((0, 0, 1, 1), zorder=-1)
        ground.imshow(sheet.pixels_HWC, interpolation="none", aspect="auto")
        ground.axis("off")
        sheet.figure.savefig(path, format="png", dpi=DPI)


def draw_sheet(path: str | Path, title: str, rows: Sequence["ClassSample"], counts_K: np.ndarray) -> None:
    """Write a PNG: a row of images for each of ``rows``, and the distribution of ``counts_K``, the images of
    each class, below."""
    side = rows[0].images[0].shape[0]
    columns = max(len(row.images) for row in rows)
    width = max(_CAPTION + columns * (side + _GAP) + 2 * _MARGIN, 760)
    grid = len(rows) * (side + _GAP)
    height = _TITLE + grid + _PLOT + 2 * _MARGIN
    headline, _, subtitle = title.partition("\n")
    with _sheet(path, width, height) as sheet:
        whole, beside = width - 2 * _MARGIN, _CAPTION - 2 * _GAP
        sheet.write(_MARGIN, 22, headline, whole, fontsize=14, weight="bold", va="center")
        sheet.write(_MARGIN, 46, subtitle, whole, fontsize=10, color=GREY, va="center")
        for number, row in enumerate(rows):
            top = _TITLE + number * (side + _GAP)
            for column, image in enumerate(row.images):
                sheet.paste(_MARGIN + _CAPTION + column * (side + _GAP), top, image)
            centre = top + side / 2
            count = f"{row.count:,} image{'s' if row.count > 1 else ''}"
            sheet.write(_MARGIN, centre - 2, row.name, beside, fontsize=10.5, weight="bold", va="bottom")
            sheet.write(_MARGIN, centre + 2, count, beside, fontsize=9, color=GREY, va="top")
        place = (_MARGIN + 50) / width, (_MARGIN + 46) / height, (whole - 60) / width, (_PLOT - 70) / height
        _distribution(sheet.figure.add_axes(place), counts_K)


def draw_predictions(path: str | Path, cards: Sequence[Card]) -> None:
    """Write a PNG: every image beside the first of its guesses, each with a bar as long as its score is of 1."""
    side = cards[0][1].shape[0]
    columns = min(_CARDS, len(cards))
    wide, high = side + _GUESSES_WIDE + _MARGIN, side + 2 * _MARGIN
    line, longest = side // _GUESSES, _GUESSES_WIDE - 2 * _GAP
    with _sheet(path, columns * wide + _MARGIN, -(-len(cards) // columns) * high + _GAP) as sheet:
        for number, (name, picture_SSC, guesses) in enumerate(cards):
            left, top = _MARGIN + number % columns * wide, number // columns * high + _MARGIN
            sheet.write(left, top - 8, name, wide - _MARGIN, fontsize=8, color=GREY, va="center")
            sheet.paste(left, top, picture_SSC)
            left += side + 2 * _GAP
            for row, guess in enumerate(guesses[:_GUESSES]):
                score = guess.get("probability", guess.get("cosine")) or 0.0
                bar_HWC = np.full((line - 3, longest, 3), _GROUND, np.uint8)
                bar_HWC[:, : round(longest * max(0.0, score))] = _BAR
                sheet.paste(left, top + row * line, bar_HWC)
                words = guess["name"] or guess["class"] or f"class {guess['label']}"
                middle = top + row * line + line / 2 - 2
                sheet.write(left + _GAP, middle, words, longest - _NUMBER, "beginning", **_GUESS)
                sheet.write(left + longest - _GAP, middle, score_text(guess), longest, ha="right", **_GUESS)


def draw_matches(path: str | Path, side: int, cards: Sequence[Card]) -> None:
    """Write a PNG: a row for each image, beside it the pictures of its nearest ones (``picture``, where there is one),
    with identity and cosine; what is not ``known`` is grey."""
    wide, high = side + 2 * _GAP, side + 2 * _MARGIN + 20
    most = max(len(matches) for _, _, matches in cards)
    with _sheet(path, (1 + most) * wide + 3 * _MARGIN, len(cards) * high + _MARGIN) as sheet:
        for number, (name, picture, matches) in enumerate(cards):
            top = number * high + _MARGIN
            unknown = "" if matches[0]["known"] else "unknown"
            tiles = [(picture, name, "end", unknown, True)]
            tiles += [(m["picture"], m["identity"], "beginning", score_text(m), m["known"]) for m in matches]
            for column, (image_SSC, identity, keep, below, known) in enumerate(tiles):
                left = _MARGIN + column * wide + (_MARGIN if column else 0)
                blank_SSC = np.full((side, side, 3), _GROUND, np.uint8)
                sheet.paste(left, top, blank_SSC if image_SSC is None else image_SSC)
                colour = "black" if known else GREY
                sheet.write(left, top + side + 10, identity, side, keep, color=colour, **_GUESS)
                sheet.write(left, top + side + 24, below, side, color=colour, **_GUESS)


def _distribution(axes: Axes, counts_K: np.ndarray) -> None:
    """The classes that have images, the largest first, by how many they have."""
    thousands = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    empty = int((counts_K == 0).sum())
    counts_K = np.sort(counts_K[counts_K > 0])[::-1]  # as in the table: mean and median are of these
    axes.stairs(counts_K, np.arange(len(counts_K) + 1), fill=True, color=BLUE)
    axes.set(xlabel="classes, the largest first", xlim=(0, len(counts_K)))
    if counts_K[0] > 100 * counts_K[-1]:  # a long tail
        axes.set(yscale="log", ylim=(0.8 * counts_K[-1], None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(thousands)
    axes.yaxis.set_major_formatter(thousands)
    mean, median = float(counts_K.mean()), float(np.median(counts_K))
    axes.axhline(mean, color=GREY, linestyle="--", linewidth=1)
    said = f"mean {mean:,.1f}, median {median:,.0f} "
    axes.annotate(said, (1, mean), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9, color=GREY)
    others = f" ({empty:,} more have none)" if empty else ""
    axes.set_title(f"Images of each class{others}", loc="left", fontsize=11, weight="bold")


def _shorten(text: Text, most: float, keep: str) -> None:
    content = "".join(letter if letter.isprintable() else "?" for letter in text.get_text())
    text.set_text(content)
    while text.get_window_extent().width > most:
        content = content[1:] if keep == "end" else content[:-1]
        text.set_text(f"…{content}" if keep == "end" else f"{content}…")
