"""Writing record sets: the bytes, what a record cannot hold, and that nothing half-made is left or overwritten."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megaclass.data.open import open_dataset
from megaclass.data.records import recordio
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.writer import RecordWriter
from megaclass.errors import UserError
from record_sets import all_samples, write_set

MAGIC = recordio.MAGIC_BYTES
SAMPLES = [(bytes([65 + i]) * (i + 1), label) for i, label in enumerate([0, 0, 1, 2, 2, 2])]


def test_property_and_names_of_classes_are_written(tmp_path):
    with RecordWriter(tmp_path, classes=["a", "ü"]) as writer:
        writer.write(b"first", 0, (112, 96))
    assert (tmp_path / "property").read_text() == "2,112,96\n"
    assert (tmp_path / "classes.txt").read_text("utf-8") == "a\nü\n"
    assert RecordDataset(tmp_path).classes == ["a", "ü"]
    (tmp_path / "classes.txt").write_text("a\n")
    with pytest.raises(UserError, match="names 1 classes, the records have 2"):
        _ = RecordDataset(tmp_path).classes


@pytest.mark.parametrize("labels", [[0, 1, 0], [0, 2]])
def test_ungrouped_labels_leave_the_identities_out(tmp_path, labels):
    write_set(tmp_path, [(b"image", label) for label in labels])
    assert len((tmp_path / "train.idx").read_text().splitlines()) == 1 + len(labels)
    assert all_samples(RecordDataset(tmp_path)) == [(b"image", label) for label in labels]


payloads = st.lists(
    st.sampled_from([MAGIC, MAGIC[:3], MAGIC[1:], b"\x00", b"abcd", b"\xff\xd8"]), min_size=1, max_size=12
).map(b"".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(payloads, st.integers(0, 2**24 - 1)), min_size=1, max_size=6), st.booleans())
def test_any_payload_survives(tmp_path_factory, samples, index):
    directory = tmp_path_factory.mktemp("set")
    write_set(directory, samples)
    if not index:
        (directory / "train.idx").unlink()
    assert all_samples(RecordDataset(directory)) == samples


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=r"train\.rec cannot be written: File too large; make room"):
            write_set(tmp_path, SAMPLES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
from megaclass.data.records.writer import RecordWriter
with RecordWriter(sys.argv[1], classes=["a"]) as writer:
    writer.write(bytes(100_000), 0)
    print(flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_nothing_that_looks_whole_and_the_next_one_replaces_it(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    words = [sys.executable, "-c", KILLED, str(tmp_path / "set")]
    other = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(UserError, match="another process is writing this set; wait for it"):
            write_set(tmp_path / "set", SAMPLES)
    finally:
        other.kill()
        other.communicate()
    hidden = tmp_path / "set/.train.part"
    assert [*(tmp_path / "set").iterdir()] == [hidden]
    assert sorted(path.name for path in hidden.iterdir()) == ["train.idx", "train.rec"]
    (hidden / "classes.txt").write_text("of one that was killed later\n")
    with pytest.raises(UserError, match="no class directories"):
        open_dataset(tmp_path / "set")
    write_set(tmp_path / "set", SAMPLES)
    assert all_samples(RecordDataset(tmp_path / "set")) == SAMPLES
    left = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert left == ["property", "train.idx", "train.rec"]


def test_the_largest_record_is_as_large_as_the_format_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(recordio, "MAX_LENGTH", 40)  # 24 of them are the header's
    for label, most in ((0, 16), ([0, 1], 8)):
        write_set(tmp_path / str(most), [(bytes(most), label)])
        with pytest.raises(UserError, match=f"has {most + 1} bytes; a record holds from 1 to {most}"):
            write_set(tmp_path / "more", [(bytes(most + 1), label)])


@pytest.mark.parametrize("label", [-1, 2**24, [0.5], [], [float("nan"), 1], [float("inf")]])
def test_what_a_record_cannot_hold_is_refused(tmp_path, label):
    with pytest.raises(UserError, match="label"):
        write_set(tmp_path, [(b"image", label)])
    with pytest.raises(UserError, match="0 bytes"):
        write_set(tmp_path, [(b"", 0)])


@pytest.mark.parametrize("name", ["two\nlines", "end\n", "a\u2028b", "\udcff"])
def test_class_names_that_make_no_line_are_refused_before_the_first_image(tmp_path, name):
    with pytest.raises(UserError, match="is not one line of UTF-8"):
        RecordWriter(tmp_path, classes=["fine", "", name]).__enter__()
    with pytest.raises(UserError, match="is not one line of UTF-8"), RecordWriter(tmp_path) as writer:
        writer.write(b"image", 0)
        writer.classes = [name]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train.rec", "train.idx", "property", "classes.txt", "skipped.txt"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match="not overwritten"):
        write_set(tmp_path, SAMPLES)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]
