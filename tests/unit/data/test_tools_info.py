"""``megaclass data info``: counts and sizes, against sets whose numbers are known."""

import json

import cv2
import numpy as np
import pytest

import tiny
from megaclass.data.tools import info as tool
from megaclass.data.tools.info import info, sample_classes
from record_sets import write_set


def encode(height: int, width: int, suffix: str = ".jpg", colour=(0, 0, 255)) -> bytes:
    """A flat image, by default red (OpenCV's order is BGR)."""
    return cv2.imencode(suffix, np.full((height, width, 3), colour, np.uint8))[1].tobytes()


@pytest.fixture
def mixed(tmp_path):
    """Four classes, of which number 2 has no image; three formats and sizes; one image that is none."""
    images = [encode(10, 20), encode(10, 20), encode(10, 20, ".png"), encode(40, 30, ".webp"), b"no image"]
    return write_set(tmp_path / "mixed", zip(images, (0, 0, 0, 1, 3), strict=True), classes=["a", "b", "c", "d"])


def spread(*values):
    return dict(zip(("min", "median", "mean", "max"), values, strict=True))


def test_what_is_told_of_a_set(mixed):
    found, dataset = info(mixed)
    assert len(dataset) == 5 and (found["kind"], found["images"], found["classes"]) == ("record set", 5, 4)
    assert found["images_per_class"] == spread(1, 1.0, 5 / 3, 3)
    assert (found["classes_without_images"], found["classes_with_one_image"]) == (1, 2)
    assert (found["looked_at"], found["damaged"]) == (5, 1)
    assert found["formats"] == {"JPEG": 2, "PNG": 1, "WEBP": 1}
    assert found["common_sizes"] == [(10, 20, 3), (40, 30, 1)]
    assert found["height"] == spread(10, 10, 17.5, 40) and found["width"] == spread(20, 20, 22.5, 30)
    assert found["encoded_bytes"]["min"] == len(b"no image") and found["class_names"]
    assert found["total_bytes"] == sum(len(dataset.read(index).encoded) for index in range(5))


def test_large_sets_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SAMPLED", 100)
    write_set(tmp_path, [(encode(8, 8 + number % 3), number // 10) for number in range(300)])
    shown = []
    found, _ = info(tmp_path, progress=lambda *now: shown.append(now))
    assert found["looked_at"] == 100 == sum(found["formats"].values()) and shown[-1] == (100, 100)
    assert found["images"] == 300 and found["images_per_class"] == spread(10, 10, 10, 10)
    assert 8.8 < found["width"]["mean"] < 9.2
    assert info(tmp_path)[0] == found  # the same images each time


def test_an_image_folder_and_several_sets(tmp_path, mixed):
    for name in ("x/1.jpg", "x/2.jpg", "y/1.jpg"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(12, 12))
    found, _ = info(tmp_path / "folder")
    assert found["kind"] == "image folder" and found["total_bytes"] == 3 * len(encode(12, 12))
    both, _ = info(f"{mixed}:{tmp_path}/folder")
    assert (both["kind"], both["images"], both["classes"]) == ("record set + image folder", 8, 6)
    assert both["total_bytes"] == info(mixed)[0]["total_bytes"] + found["total_bytes"]


def test_samples_of_classes_are_squares_and_damage_is_grey(mixed):
    _, dataset = info(mixed)
    rows = sample_classes(dataset, classes=9, per_class=2, side=24)
    assert [(row.name, row.count, len(row.images)) for row in rows] == [("a", 3, 2), ("b", 1, 1), ("d", 1, 1)]
    assert all(image.shape == (24, 24, 3) and image.dtype == np.uint8 for row in rows for image in row.images)
    assert rows[0].images[0][..., 0].min() > 240 and (rows[2].images[0] == 160).all()
    assert len(sample_classes(dataset, classes=1, per_class=1, side=8)) == 1


def test_the_command_prints_a_table_or_json_and_draws(told, tmp_path, mixed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    sheet = tmp_path / "sheet.png"
    printed = told("data", "info", mixed, "--sheet", sheet)
    for text in (
        "1: labels do not cover 0..3",
        "JPEG 2, PNG 1, WEBP 1",
        "20 x 10 (75%)",
        "1; `megaclass data",
    ):
        assert text in printed
    assert cv2.imread(str(sheet)).shape[1] >= 760
    row = json.loads(told("data", "info", mixed, "--json"))
    assert row["images"] == 5 and row["width"] == {"min": 20, "median": 20, "mean": 22.5, "max": 30}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mixed", "--sheet", "sheet.jpg"], "sheet.jpg ends with none of .png; name such a file"),
        (["mixed", "--sheet", "there.png"], "there.png exists; name another file"),
        (["mixed", "--sheet", "gone/a.png"], "gone is not a directory"),
        (["cut"], "train.rec record"),
    ],
)
def test_bad_input_ends_with_one_line(refused, tmp_path, mixed, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_bytes(b"kept")
    cut = tiny.write_records(tmp_path / "cut") / "train.rec"
    cut.write_bytes(cut.read_bytes()[:3000])
    refused(["data", "info", *words], message)
