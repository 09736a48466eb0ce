"""``megaclass data pack``: options, what is printed, exit statuses."""

import os
import re

import cv2
import numpy as np
import pytest

from megaclass.cli import main
from megaclass.data.decode import decode
from megaclass.data.pack import packer
from megaclass.data.records.reader import RecordDataset


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(24):
        path = tmp_path / f"in/{'ab'[number % 2]}/{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((20, 30), 10 * number, np.uint8))
    return tmp_path


def test_a_line_sums_up_what_was_packed(folder, capsys):
    words = ["--shorter-side", "10", "--layout", "im2rec", "--workers", "2"]
    assert main(["data", "pack", "in", "out", *words]) == 0
    size = (folder / "out/train.rec").stat().st_size / 1e3
    assert re.fullmatch(
        rf"packed 24 images of 2 classes into out/train\.rec \({size:.1f} kB, \d+\.\d s, [\d,]+ images/s\)\n",
        capsys.readouterr().out,
    )
    assert (folder / "out/property").read_text() == "2,10,15\n"
    assert len((folder / "out/train.idx").read_text().splitlines()) == 24


def test_images_left_out_are_counted_and_the_first_ten_named(told, folder, capfd):
    for path in sorted((folder / "in").rglob("*.png"))[:12]:
        path.write_bytes(b"damaged")
    assert main(["data", "pack", "in", "out"]) == 2
    error = capfd.readouterr().err
    assert "in/a/00.png: starts with b'damaged'" in error and error.endswith("(--on-error skip)\n")
    *named, more, summary = told("data", "pack", "in", "out", "--on-error", "skip").splitlines()
    assert len(named) == 10 and all(line.startswith("left out: in/a/") for line in named)
    assert more == "left out: 2 more, see out/skipped.txt" and summary.endswith("12 left out)")
    listed = (folder / "out/skipped.txt").read_text().splitlines()
    assert listed[:10] == [line.removeprefix("left out: ") for line in named] and len(listed) == 12
    dataset = RecordDataset(folder / "out")
    assert [round(decode(dataset.read(i).encoded, "").mean() / 10) for i in range(12)] == [*range(1, 24, 2)]


def test_interrupted_it_says_that_nothing_was_written_and_packs_again(folder, capsys, monkeypatch):
    def stops(image, where, encoding):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packer, "to_jpeg", stops)
        assert main(["data", "pack", "in", "out"]) == 130
    assert capsys.readouterr().err == "megaclass: interrupted; nothing was written\n"
    assert not list((folder / "out").iterdir())
    assert main(["data", "pack", "in", "out"]) == 0 and len(RecordDataset(folder / "out")) == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("in out --quality 0", "error: --quality: 0 is not a JPEG quality"),
        ("in out --unpack-bits 7", "--unpack-bits: '7' is not HEIGHTxWIDTH"),
        ("in out --class-depth 0", "--class-depth: 0"),
        ("in out --where x=1", "in is a folder; --where is for an .npz, leave it out"),
        (
            "nowhere out",
            "nowhere: no such file or directory; name an image folder, a record set, or an .npz, .csv, .tsv or tar",
        ),
        (
            "in.zip out",
            "in.zip is not an image folder, a record set, or an .npz, .csv, .tsv or tar file; if it is an archive",
        ),
        ("pipe.csv out", "pipe.csv is not an image folder, a record set, or an .npz, .csv, .tsv or tar file"),
        ("long.csv out", "long.csv names no images"),
        ("in out --image-size 8 --shorter-side 9", "error: --image-size makes squares"),
        ("in out --classes nowhere", "error: --classes: nowhere cannot be read"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(refused, folder, words, message):
    (folder / "in.zip").write_bytes(b"PK\x03\x04")
    (folder / "long.csv").write_text(f"{'x' * 5000},cat\n")
    os.mkfifo(folder / "pipe.csv")
    assert not refused(["data", "pack", *words.split()], message)
