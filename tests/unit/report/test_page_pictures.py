"""Which curves are drawn, and how."""

import re
from xml.etree import ElementTree

import pytest

from made_rows import FACES, INFER, LAPTOP, PHOTOGRAPHS, SERVER, every_row, row
from megaclass.report.page.document import Picture, Series
from megaclass.report.page.draw import colours, css_colours, draw
from megaclass.results import published
from page_documents import document_of


def _picture(document, title):
    (found,) = [picture for picture in document.pictures() if picture.title.startswith(title)]
    return found


def _train(n, **fields):
    case = PHOTOGRAPHS | {"world_size": n, "global_batch_size": 64 * n, "iterations": 10 * n}
    case |= {"collectives": "included"} if n > 1 else {}
    return row("train", case, 100.0, noise=0, **fields)


def test_every_kind_of_picture_is_drawn(tmp_path):
    titles = [p.title for p in document_of(tmp_path, every_row(), against=published.names()).pictures()]
    for kind in ("Scaling", "Latency by batch", "Throughput by batch", "Memory by number of classes",
                 "Throughput by number of classes", "Bus bandwidth by message size"):  # fmt: skip
        assert any(title.startswith(kind) for title in titles), kind


def test_scaling_has_the_curve_and_the_ideal_line(tmp_path):
    picture = _picture(document_of(tmp_path, [_train(1), _train(2), _train(4)]), "Scaling")
    curve, ideal = picture.series
    assert curve.points == [(1, 640), (2, 1280), (4, 2560)]
    assert ideal.ideal and ideal.points == [(1, 640), (4, 2560)]


def test_one_point_is_no_curve(tmp_path):
    document = document_of(tmp_path, [_train(1), row("infer", INFER, 1.0)], against=published.names())
    assert document.pictures() == []


def test_machines_have_curves_of_their_own(tmp_path):
    rows = [_train(n, environment=e) for n in (1, 2) for e in (LAPTOP, SERVER)]
    picture = _picture(document_of(tmp_path, rows), "Scaling")
    labels = [series.label for series in picture.series if not series.ideal]
    assert labels == ["Testchip 9000, 2 threads", "8 x Testcard T1 80GB"]
    assert all(len(series.points) == 2 for series in picture.series)


def test_latency_has_median_and_p99_on_logarithmic_axes(tmp_path):
    rows = [row("infer", INFER | {"batch_size": b}, b, noise=0.2) for b in (1, 8)]
    picture = _picture(document_of(tmp_path, rows), "Latency")
    assert picture.x_base and picture.y_base
    p50, p99 = picture.series
    assert "p50" in p50.label and "p99" in p99.label
    assert all(slow[1] > usual[1] for usual, slow in zip(p50.points, p99.points, strict=True))


def test_published_curves_stand_beside_own_and_are_told_apart(tmp_path):
    rows = [
        row(
            "train",
            FACES | {"num_classes": n, "sample_rate": 0.1},
            200.0,
            memory_mb={"driver": 100.0 + n / 1e4},
        )
        for n in (125_000, 8_000_000)
    ]
    picture = _picture(
        document_of(tmp_path, rows, against=["partial-fc-v100"]), "Memory by number of classes"
    )
    own, *others = picture.series
    assert not own.published and own.label.startswith("8 x Testcard")
    assert len(others) == 3 and all(one.published and one.label.startswith("published: ") for one in others)
    sampled = next(one for one in others if "sample rate 0.1" in one.label)
    assert (29_000_000, 32_324) in sampled.points
    assert len(sampled.points) == 11  # without the other test, at 3 million
    assert not {*css_colours([own])} & {*css_colours(others)}


def test_published_gigabytes_are_drawn_in_the_unit_of_ones_own(tmp_path):
    rows = [row("train", FACES | {"num_classes": n}, 200.0, memory_mb={"driver": 1.0}) for n in (1000, 2000)]
    picture = _picture(document_of(tmp_path, rows, against=["arcface-a100"]), "Memory")
    values = [y for series in picture.series if series.published for _, y in series.points]
    assert max(values) == pytest.approx(79.6 * 1024)


def test_what_a_suite_scaled_down_is_said_in_the_legend(tmp_path):
    rows = [
        row("infer", INFER | {"batch_size": b, "precision": "bf16"}, 1.0, asked=INFER | {"batch_size": b})
        for b in (1, 8)
    ]
    picture = _picture(document_of(tmp_path, rows), "Throughput")
    assert "scaled down to fit" in picture.series[0].label


def test_operations_share_a_picture(tmp_path):
    rows = [
        row(
            "collectives",
            {"op": op, "size_bytes": size, "calls": 9999 // size},
            1.0,
            work={"bus_bytes_per_second": 1e6 * size},
        )
        for op in ("all_reduce", "broadcast")
        for size in (1024, 4096)
    ]
    picture = _picture(document_of(tmp_path, rows), "Bus bandwidth")
    assert [series.label.split(", ")[-1] for series in picture.series] == ["all_reduce", "broadcast"]


def test_many_curves_are_several_pictures(tmp_path):
    rows = [
        row("infer", INFER | {"batch_size": b, "backbone": f"net{n}"}, 1.0) for n in range(11) for b in (1, 2)
    ]
    pictures = [p for p in document_of(tmp_path, rows).pictures() if p.title.startswith("Throughput")]
    assert [len(p.series) for p in pictures] == [8, 3]
    assert pictures[1].title.endswith("(2 of 2)")


PICTURE = Picture(
    "Title", "x", "y",
    [Series("own", [(1, 2), (2, 5)]), Series("theirs", [(1, 1), (2, 2)], published=True),
     Series("ideal", [(1, 2), (2, 4)], ideal=True)],
    2, 10,
)  # fmt: skip


def test_a_picture_takes_its_colours_from_the_page():
    svg = draw(PICTURE, "f1")
    assert "currentColor" in svg and "var(--grid)" in svg
    for colour in css_colours(PICTURE.series):
        assert colour in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "a colour that is not the page's own"
    assert len({*colours(PICTURE.series)}) == 3


def test_a_picture_is_one_element_with_ids_of_its_own_and_no_address():
    first, second = draw(PICTURE, "f1"), draw(PICTURE, "f2")
    assert ElementTree.fromstring(first).tag == "svg"
    ids = [re.findall(r'\bid="([^"]*)"', svg) for svg in (first, second)]
    assert ids[0] and len({*ids[0]}) == len(ids[0]) and not {*ids[0]} & {*ids[1]}
    for svg, prefix in ((first, "f1-"), (second, "f2-")):
        targets = re.findall(r'href="#([^"]*)"', svg) + re.findall(r"url\(#([^)]*)\)", svg)
        assert targets and all(target.startswith(prefix) for target in targets)
        assert {*targets} <= {*re.findall(r'\bid="([^"]*)"', svg)}
    assert "http" not in first and "<style" not in first
    assert "var(--sans)" in first and "DejaVu" not in first


def test_a_picture_says_in_words_what_it_shows():
    assert PICTURE.alt == "Title: y against x. own: 2 at 1 to 5 at 2. theirs: 1 at 1 to 2 at 2."
