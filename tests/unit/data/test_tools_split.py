"""``megaclass data split``: the same images under the same classes, in two sets."""

from collections import Counter

import cv2
import numpy as np
import pytest

from megaclass.data.open import open_dataset
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.writer import RecordWriter
from megaclass.data.tools.split import split
from megaclass.errors import UserError
from record_sets import all_samples, write_set

IMAGE = cv2.imencode(".png", np.zeros((6, 8, 3), np.uint8))[1].tobytes()


def silent(done, total):
    """No progress bar."""


def numbered(labels):
    """Images of 8 x 6 pixels with these labels, a number behind each so that all differ."""
    return [(IMAGE + number.to_bytes(4, "little"), label) for number, label in enumerate(labels)]


@pytest.mark.parametrize("names", [[f"k{i}" for i in range(9)], None])
def test_the_parts_of_a_split_share_no_class(tmp_path, names):
    labels = [0, 0, 1, 1, 1, 3, 3, 4, 5, 5, 6, 6, 7, 7, 8, 8]  # 2 has no image, 4 only one
    write_set(tmp_path / "set", numbered(labels), classes=names)
    names = names or [str(label) for label in range(9)]
    train, test = split(tmp_path / "set", tmp_path / "out", 0.375, 3, silent)
    assert (train.num_classes, test.num_classes) == (5, 3) and train.count + test.count == 16
    found = {}
    for part, written in (("train", train), ("test", test)):
        dataset = RecordDataset(tmp_path / "out" / part)
        assert dataset.num_classes == written.num_classes == len(set(dataset.labels().tolist()))
        found[part] = [(encoded, dataset.classes[label]) for encoded, label in all_samples(open_dataset(written.path))]
    before = [(encoded, names[label]) for encoded, label in numbered(labels)]
    assert sorted(found["train"] + found["test"]) == sorted(before)
    assert not {name for _, name in found["train"]} & {name for _, name in found["test"]}
    assert min(Counter(name for _, name in found["test"]).values()) >= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("split set out --share 0.9", "0.9 is 4 of its 4 classes"),
        ("split set out --share 0.7", "0.7 is 3 of its 4 classes; one class at least has to go to each part, "
                                      "and of those to be split off, 2 have the two images"),
        ("split set out --share nan", "nan is 0 of its 4 classes"),
        ("split set out", "0.1 is 0 of its 4 classes"),
        ("split set set --share 0.2", "exists and is not overwritten"),
        ("split damaged out --share 0.5", "record 3"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_one_line_and_changes_nothing(refused, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set", numbered([0, 0, 1, 1, 2, 3]))
    write_set(tmp_path / "set/test", numbered([0]))
    rec = write_set(tmp_path / "damaged", numbered([0, 0, 1, 1, 1])) / "train.rec"
    offset = int((tmp_path / "damaged/train.idx").read_text().splitlines()[3].split("\t")[1])
    rec.write_bytes(rec.read_bytes()[:offset] + b"XXXX" + rec.read_bytes()[offset + 4 :])
    assert not [path for path in refused(["data", *words.split()], message) if path.is_file()]


@pytest.mark.parametrize("fails", ["train", "test"])
def test_a_split_that_fails_at_its_end_leaves_neither_part(tmp_path, monkeypatch, fails):
    write_set(tmp_path / "set", numbered([0, 0, 1, 1, 2]))
    finish = RecordWriter._finish

    def full(writer):
        finish(writer)
        if writer.path.parent.name == fails:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "_finish", full)
    with pytest.raises(UserError, match="cannot be written: No s"):
        split(tmp_path / "set", tmp_path / "out", 0.3, 0, silent)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_the_command_tells_what_it_wrote(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set", numbered([0, 0, 1, 1, 2]))
    assert "2 images of 1 classes in parts/test/train.rec" in told("data", "split", "set", "parts", "--share", "0.3")
