"""`megaclass bench loader` as a user meets it."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from megaclass.bench import peers
from megaclass.bench.old_loader import plan
from megaclass.cli import main
from megaclass.results.rows import read_rows

TINY = [
    "--images",
    "12",
    "--batch-size",
    "4",
    "--batches",
    "3",
    "--rounds",
    "2",
    "--threads",
    "1",
    "--device",
    "cpu",
]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def bench(*words):
    return main(["bench", "loader", *TINY, *map(str, words)])


@pytest.mark.dist
def test_rows_and_tables_with_a_peer_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers.dali, "missing", lambda case: "not here")
    left_behind = tmp_path / "temporary"
    left_behind.mkdir()
    monkeypatch.setattr(plan.tempfile, "tempdir", str(left_behind))
    assert (
        bench("--workload", "faces", "--source", "records", "--peer", "dali,nvjpeg", "--output", "rows.jsonl")
        == 0
    )
    bare, ours, with_dali, dali, nvjpeg = read_rows("rows.jsonl")
    assert [(row.implementation, row.status) for row in (bare, ours, with_dali, dali, nvjpeg)] == [
        ("simplejpeg", "ok"), ("megaclass", "ok"), ("megaclass", "skipped"), ("dali", "skipped"),
        ("nvjpeg", "skipped"),
    ], (bare.reason, ours.reason)  # fmt: skip
    assert dali.reason == with_dali.reason == "not here" and bare.group == ours.group
    assert "loader" not in ours.case and with_dali.case["loader"] == "dali" and "CUDA" in nvjpeg.reason
    assert ours.benchmark == "loader" and ours.case["source"] == "records"
    assert ours.case["distinct_images"] == 12 and ours.case["image_pixels"] == 112 * 112
    assert len(ours.cpu_ms) == len(ours.samples_ms) == 2
    assert ours.work["cpu_us"] == pytest.approx(1000 * np.median(ours.cpu_ms) / 12, abs=0.001)
    assert ours.samples_per_second == pytest.approx(12 / ours.step_ms["p50"] * 1000, rel=1e-4)
    assert {f"cpu_us_{name}" for name in ("read", "decode", "augment", "assemble", "copy")} < ours.work.keys()
    assert not [*left_behind.iterdir()]  # the images are gone
    said = capsys.readouterr().out
    assert said.count("images/s ") == 1  # one table, with those that are missing
    assert "case 1 of 1: faces, 112 px" in said and "dali records: skipped: not here" in said
    assert "of bare decode in a CPU second" in said and "rows appended to rows.jsonl" in said


def image_folder(root, *images):
    (root / "a").mkdir(parents=True)
    for number, encoded in enumerate(images):
        (root / "a" / f"{number}.jpg").write_bytes(encoded)
    return root


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--workload", "faces,imagenets"], "did you mean 'imagenet'"),
        (["--source", "record"], "records"),
        (["--loader", "thread"], "did you mean 'threads'"),
        (["--peer", "dally"], "did you mean 'dali'"),
        (["--rounds", "0"], "--rounds"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batches", "-1"], "--batches"),
        (["--threads", "-1"], "--threads"),
        (["--prefetch", "0"], "--prefetch"),
        (["--images", "-1"], "--images"),
        (["--timeout", "0"], "--timeout"),
        (["--device", "tpu"], "--device: 'tpu'"),
        (["--data", "nowhere"], "nowhere"),
        (["--output", "notes.txt"], "notes.txt"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_touched(words, part, capfd):
    notes = Path("notes.txt")
    notes.write_text("not rows\n")
    assert bench(*words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("megaclass: error: ") and part in lines[0]
    assert [*Path().iterdir()] == [notes] and notes.read_text() == "not rows\n"


def test_a_set_that_cannot_be_measured_is_one_line(tmp_path, capfd):
    pixels = np.zeros((112, 90, 3), np.uint8)
    png = cv2.imencode(".png", pixels)[1].tobytes()
    for encoded, part in ((png, "is no JPEG"), (simplejpeg.encode_jpeg(pixels), "90 x 112 pixels")):
        folder = image_folder(tmp_path / "set", encoded)
        assert bench("--workload", "faces", "--data", folder) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert part in line and "0.jpg" in line
        shutil.rmtree(folder)
