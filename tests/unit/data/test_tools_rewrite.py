"""``megaclass data shuffle``, ``split`` and ``merge``: the same images under the same classes, elsewhere."""

import itertools
import re
from collections import Counter

import cv2
import numpy as np
import pytest

from megaclass.cli import main
from megaclass.data.open import open_dataset
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.writer import RecordWriter
from megaclass.data.tools import rewrite
from megaclass.errors import UserError

IMAGE = cv2.imencode(".png", np.zeros((6, 8, 3), np.uint8))[1].tobytes()


def silent(done, total):
    """No progress bar."""


def image(number: int) -> bytes:
    """An image of 8 x 6 pixels, a number behind it so that all differ."""
    return IMAGE + number.to_bytes(4, "little")


def write_set(folder, labels, first=0, **options):
    with RecordWriter(folder, **options) as writer:
        for number, label in enumerate(labels, first):
            writer.write(image(number), label)
    return folder


def samples(path):
    dataset = open_dataset(path)
    found = [tuple(dataset.read(i)) for i in range(len(dataset))]
    assert dataset.labels().tolist() == [label for _, label in found]
    return found


def test_a_shuffled_set_has_the_same_images_and_labels_in_another_order(tmp_path):
    labels = [number // 30 for number in range(300)]  # more than one piece
    write_set(tmp_path / "set", labels, classes=[f"k{i}" for i in range(10)])
    shown = []
    written = rewrite.shuffle(tmp_path / "set", tmp_path / "a", 1, lambda *now: shown.append(now))
    assert (written.path, written.count, written.num_classes) == (tmp_path / "a/train.rec", 300, 10)
    assert shown[-1] == (300, 300)
    before, after = samples(tmp_path / "set"), samples(tmp_path / "a")
    assert sorted(after) == sorted(before) and after != before
    # As random as an order should be: of 299 pairs of neighbours, about 9.7 % are of one class.
    assert sum(one[1] == two[1] for one, two in itertools.pairwise(after)) < 60
    assert RecordDataset(tmp_path / "a").classes == [f"k{i}" for i in range(10)]
    assert (tmp_path / "a/property").read_text() == "10,6,8\n"
    assert len((tmp_path / "a/train.idx").read_text().splitlines()) == 300  # and no identity records

    rewrite.shuffle(tmp_path / "set", tmp_path / "again", 1, silent)
    rewrite.shuffle(tmp_path / "set", tmp_path / "b", 2, silent)
    assert (tmp_path / "again/train.rec").read_bytes() == (tmp_path / "a/train.rec").read_bytes()
    assert samples(tmp_path / "b") != after


def test_merged_sets_are_what_they_are_when_joined_on_the_fly(tmp_path):
    one = write_set(tmp_path / "one", [0, 0, 1], classes=["a", "b"])
    two = write_set(tmp_path / "two", [0, 1, 1], first=9, classes=["b", "c"])
    for sets in ([one, two], [f"{one}:{two}"]):
        output = tmp_path / f"merged{len(sets)}"
        assert rewrite.merge(sets, output, False, silent).num_classes == 4
        joined = open_dataset(f"{one}:{two}")
        assert samples(output) == samples(f"{one}:{two}")
        assert RecordDataset(output).classes == joined.classes == ["one/a", "one/b", "two/b", "two/c"]
        assert RecordDataset(output).num_classes == joined.num_classes
        assert (output / "property").read_text() == "4,6,8\n"
        assert len((output / "train.idx").read_text().splitlines()) == 1 + 6 + 4

    rewrite.merge([one, two], tmp_path / "same", True, silent)
    assert [label for _, label in samples(tmp_path / "same")] == [0, 0, 1, 1, 2, 2]
    assert RecordDataset(tmp_path / "same").classes == ["a", "b", "c"]


@pytest.mark.parametrize("names", [[f"k{i}" for i in range(9)], None])
def test_the_parts_of_a_split_share_no_class(tmp_path, names):
    labels = [0, 0, 1, 1, 1, 3, 3, 4, 5, 5, 6, 6, 7, 7, 8, 8]  # 2 has no image, 4 only one
    write_set(tmp_path / "set", labels, classes=names)
    names = names or [str(label) for label in range(9)]
    train, test = rewrite.split(tmp_path / "set", tmp_path / "out", 0.375, 3, silent)
    assert (train.num_classes, test.num_classes) == (5, 3) and train.count + test.count == 16
    found = {}
    for part, written in (("train", train), ("test", test)):
        dataset = RecordDataset(tmp_path / "out" / part)
        assert dataset.num_classes == written.num_classes == len(set(dataset.labels().tolist()))
        found[part] = [(encoded, dataset.classes[label]) for encoded, label in samples(written.path)]
    before = [(image(number), names[label]) for number, label in enumerate(labels)]
    assert sorted(found["train"] + found["test"]) == sorted(before)
    assert not {name for _, name in found["train"]} & {name for _, name in found["test"]}
    assert min(Counter(name for _, name in found["test"]).values()) >= 2


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("shuffle set set", "exists and is not overwritten"),
        ("merge out set gone", "gone: no such file or directory"),
        ("merge set set other", "exists and is not overwritten"),
        ("merge out set other --same-classes", "its classes need a name each"),
        ("split set out --share 0.9", "0.9 is 4 of its 4 classes"),
        ("split set out --share 0.7", "0.7 is 3 of its 4 classes; .*, 2 have the two images"),
        ("split set out --share nan", "nan is 0 of its 4 classes"),
        ("split set out", "0.1 is 0 of its 4 classes"),
        ("split set set --share 0.2", "exists and is not overwritten"),
        ("shuffle damaged out", "record 3"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_one_line_and_changes_nothing(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set", [0, 0, 1, 1, 2, 3])
    write_set(tmp_path / "other", [0, 1], classes=["a", "b"])
    write_set(tmp_path / "set/test", [0])
    rec = write_set(tmp_path / "damaged", [0, 0, 1, 1, 1]) / "train.rec"
    offset = int((tmp_path / "damaged/train.idx").read_text().splitlines()[3].split("\t")[1])
    rec.write_bytes(rec.read_bytes()[:offset] + b"XXXX" + rec.read_bytes()[offset + 4 :])
    before = contents(tmp_path)
    assert main(["data", *words.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(message, lines[0])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fails", ["train", "test"])
def test_a_split_that_fails_at_its_end_leaves_neither_part(tmp_path, monkeypatch, fails):
    write_set(tmp_path / "set", [0, 0, 1, 1, 2])
    finish = RecordWriter._finish

    def full(writer):
        finish(writer)
        if writer.path.parent.name == fails:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "_finish", full)
    with pytest.raises(UserError, match="cannot be written: No s"):
        rewrite.split(tmp_path / "set", tmp_path / "out", 0.3, 0, silent)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_the_commands_tell_what_they_wrote(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set", [0, 0, 1, 1, 2])
    for words, line in (
        ("shuffle set shuffled --seed 7", "shuffled 5 images of 3 classes into shuffled/train.rec"),
        ("merge merged set shuffled", "merged 10 images of 6 classes into merged/train.rec"),
        ("split set parts --share 0.3", "2 images of 1 classes in parts/test/train.rec"),
    ):
        assert main(["data", *words.split()]) == 0
        assert line in capsys.readouterr().out


def test_the_last_classes_stay_though_they_have_no_images(tmp_path):
    write_set(tmp_path / "set", [0, 0, 1])
    (tmp_path / "set/property").write_text("5,6,8\n")
    shuffled = rewrite.shuffle(tmp_path / "set", tmp_path / "shuffled", 0, silent)
    merged = rewrite.merge([tmp_path / "set"], tmp_path / "merged", False, silent)
    assert {RecordDataset(written.path).num_classes for written in (shuffled, merged)} == {5}
