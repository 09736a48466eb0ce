"""The sample sheet: images pixel for pixel, captions and bars, for odd sets too."""

import warnings
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from megaclass.report import sheet
from megaclass.report.sheet import draw_sheet


def row(name, colours, count=7, side=40):
    return SimpleNamespace(
        name=name, count=count, images=[np.full((side, side, 3), colour, np.uint8) for colour in colours]
    )


def drawn(path, rows, counts):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        draw_sheet(path, "title\nsubtitle", rows, np.array(counts))
    return cv2.imread(str(path))[:, :, ::-1]


def test_every_image_is_there_pixel_for_pixel(tmp_path):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 0, 250)]
    picture = drawn(tmp_path / "s.png", [row("one", colours[:3]), row("two", colours[3:])], [7, 7])
    found = {}
    for colour in colours:
        at = np.argwhere((picture == colour).all(-1))
        assert len(at) == 40 * 40
        found[colour] = at.min(0).tolist()
        assert (at.max(0) - at.min(0) == 39).all()
    tops, lefts = zip(*found.values(), strict=True)
    assert tops[0] == tops[1] == tops[2] < tops[3] and lefts[0] == lefts[3] < lefts[1] < lefts[2]


@pytest.mark.parametrize("counts", [[5, 5], [*range(1, 3000)], [0] * 60 + [1]])
def test_the_distribution_is_drawn_for_any_counts(tmp_path, counts):
    picture = drawn(tmp_path / "s.png", [row("k", [(1, 1, 1)])], counts)
    assert (picture == (0, 0x72, 0xB2)).all(-1).sum() > 500


@pytest.mark.parametrize("most", [9, 900])  # even, and with a long tail
def test_mean_and_median_are_those_of_the_table_of_classes_that_have_images(most):
    axes = Figure().add_subplot()
    counts_K = np.array([0] * 60 + [1] * 30 + [most] * 10)
    sheet._distribution(axes, counts_K)
    (told,) = [text.get_text() for text in axes.texts]
    assert told.strip() == f"mean {(30 + 10 * most) / 40:,.1f}, median 1"
    assert axes.patches[0].get_data().values.tolist() == [most] * 10 + [1] * 30
    assert axes.get_title(loc="left").endswith("(60 more have none)")


def test_odd_names_are_no_formulas_and_fit(tmp_path):
    long = "a/very/long/path/that/would/run/into/the/images"
    names = ["$x^$", r"\frac", "人物一", "tab\there", long, "_", "%"]
    picture = drawn(tmp_path / "s.png", [row(name, [(200, 0, 0)]) for name in names], [1] * len(names))
    left = np.argwhere((picture == (200, 0, 0)).all(-1))[:, 1].min()
    assert (picture[64:300, left - 6 : left - 1] == 255).all()
