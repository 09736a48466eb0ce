"""Record sets: against bytes laid out by hand, round trips, and files damaged at random."""

import os
import pickle
import resource
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.open import open_dataset
from megaclass.data.records import reader as records
from megaclass.data.records import recordio
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.writer import RecordWriter
from megaclass.errors import UserError

MAGIC = b"\x0a\x23\xd7\xce"
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def part(flag: int, content: bytes) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(content)) + content + bytes(-len(content) % 4)


def header(flag: int, label: float, key: int = 0) -> bytes:
    return struct.pack("<IfQQ", flag, label, key, 0)


def lay_out(directory, pieces: dict[int, bytes], index: bool = True, properties: str | None = None):
    """Write ``pieces`` (key -> framed record) as train.rec, without the code under test."""
    rec, lines = b"", ""
    for key, piece in pieces.items():
        lines += f"{key}\t{len(rec)}\n"
        rec += piece
    directory.mkdir(exist_ok=True)
    (directory / "train.rec").write_bytes(rec)
    if index:
        (directory / "train.idx").write_text(lines)
    if properties is not None:
        (directory / "property").write_text(properties)
    return directory


def face_set() -> dict[int, bytes]:
    """Three images of two identities, one with a vector label, one split at a magic, as public sets lie."""
    split = header(0, 1.0, 3) + b"abcd"  # 28 bytes: the magic that follows is aligned
    return {
        0: part(0, header(2, 0.0) + struct.pack("<2f", 4, 6)),
        1: part(0, header(0, 0.0, 1) + b"first"),
        2: part(0, header(2, 0.0, 2) + struct.pack("<2f", 1, 0.25) + b"second"),
        3: part(1, split) + part(2, b"") + part(3, b"tail!"),
        4: part(0, header(2, 0.0, 4) + struct.pack("<2f", 1, 2)),
        5: part(0, header(2, 0.0, 5) + struct.pack("<2f", 2, 4)),
    }


FACE_SAMPLES = [(b"first", 0), (b"second", 1), (b"abcd" + MAGIC + MAGIC + b"tail!", 1)]


def all_samples(dataset: RecordDataset) -> list[tuple[bytes, int]]:
    return [tuple(dataset.read(i)) for i in range(len(dataset))]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("properties", [None, "2,112,112", "2,112,112\n"])
def test_reads_a_face_set_laid_out_by_hand(tmp_path, index, properties):
    dataset = RecordDataset(lay_out(tmp_path, face_set(), index, properties))
    assert all_samples(dataset) == FACE_SAMPLES
    assert dataset.num_classes == 2
    assert dataset.labels().tolist() == [0, 1, 1] and dataset.labels().dtype == np.int64
    assert dataset.describe(1) == f"{tmp_path}/train.rec record 2 (offset {40 + 40})"


def test_reads_a_face_set_whose_index_is_out_of_order_or_without_identities(tmp_path):
    pieces = face_set()
    backwards = dict(reversed(pieces.items()))
    assert all_samples(RecordDataset(lay_out(tmp_path / "a", backwards))) == FACE_SAMPLES
    del pieces[4], pieces[5]
    dataset = RecordDataset(lay_out(tmp_path / "b", pieces))
    assert all_samples(dataset) == FACE_SAMPLES
    assert dataset.labels().tolist() == [0, 1, 1] and dataset.num_classes == 2


def test_a_rounded_image_count_is_corrected(tmp_path, monkeypatch):
    """Beyond 2**24 images, record 0 cannot hold the count exactly: the first identity is looked up."""
    pieces = face_set()
    pieces[0] = part(0, header(2, 0.0) + struct.pack("<2f", 3, 5))
    monkeypatch.setattr(records, "MAX_EXACT", 4)
    monkeypatch.setattr(np, "spacing", lambda value: 2.0)
    dataset = RecordDataset(lay_out(tmp_path, pieces))
    assert all_samples(dataset) == FACE_SAMPLES and dataset.num_classes == 2


def grouped(writer: RecordWriter) -> list[tuple[bytes, int]]:
    samples = [(bytes([65 + i]) * (i + 1), label) for i, label in enumerate([0, 0, 1, 2, 2, 2])]
    for encoded, label in samples:
        writer.write(encoded, label)
    return samples


def test_writes_the_bytes_of_a_face_set(tmp_path):
    with RecordWriter(tmp_path, image_size=(112, 96), classes=["a", "ü"]) as writer:
        writer.write(b"first", 0)
        writer.write(b"second", [1, 0.25])
        writer.write(b"abcd" + MAGIC + MAGIC + b"tail!", 1)
    lay_out(tmp_path / "by_hand", face_set())
    for name in ("train.rec", "train.idx"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "by_hand" / name).read_bytes()
    assert (tmp_path / "property").read_text() == "2,112,96\n"
    assert (tmp_path / "classes.txt").read_text("utf-8") == "a\nü\n"
    assert RecordDataset(tmp_path).classes == ["a", "ü"]
    (tmp_path / "classes.txt").write_text("a\n")
    with pytest.raises(UserError, match="names 1 classes, the records have 2"):
        _ = RecordDataset(tmp_path).classes


@pytest.mark.parametrize("labels", [[1, 0], [0, 1, 0], [0, 2], [3, 3]])
def test_ungrouped_labels_leave_the_identities_out(tmp_path, labels):
    with RecordWriter(tmp_path) as writer:
        for label in labels:
            writer.write(b"image", label)
    assert len((tmp_path / "train.idx").read_text().splitlines()) == 1 + len(labels)
    dataset = RecordDataset(tmp_path)
    assert dataset.labels().tolist() == labels and dataset.num_classes == max(labels) + 1


alphabet = st.sampled_from([MAGIC, MAGIC[:3], MAGIC[1:], b"\x00", b"abcd", b"\xff\xd8"])
payloads = st.lists(alphabet, min_size=1, max_size=12).map(b"".join)


@quick
@given(st.lists(st.tuples(payloads, st.integers(0, 2**24 - 1)), min_size=1, max_size=6), st.booleans())
def test_any_payload_survives(tmp_path_factory, samples, index):
    directory = tmp_path_factory.mktemp("set")
    with RecordWriter(directory) as writer:
        for encoded, label in samples:
            writer.write(encoded, label)
    if not index:
        (directory / "train.idx").unlink()
    dataset = RecordDataset(directory)
    assert all_samples(dataset) == samples
    assert dataset.labels().tolist() == [label for _, label in samples]


def reader_of(content: bytes):
    return lambda offset, count: content[offset : offset + count]


def sound_bytes(directory) -> tuple[bytes, bytes]:
    with RecordWriter(directory) as writer:
        for i in range(8):
            writer.write(b"x" * 21 + MAGIC * (i % 3) + bytes([i]), i // 2)
    return (directory / "train.rec").read_bytes(), (directory / "train.idx").read_bytes()


IMAGE = header(0, 0.0) + b"image"


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (b"\x0b" + part(0, IMAGE)[1:], "magic number is 0xced7230b"),
        (part(0, IMAGE[:20]), "20 bytes are fewer than the 24 of a header"),
        (MAGIC + struct.pack("<I", 1 << 20) + IMAGE + b"...", "1048576 bytes from byte"),
        (part(0, header(1000, 0.0) + b"image"), "1000 labels do not fit"),
        (part(2, IMAGE), "part 0 has the flag 2"),
        (part(1, IMAGE + b"...") + part(1, IMAGE), "part 1 has the flag 1"),
        (part(1, IMAGE + b"...") + part(0, IMAGE), "part 1 has the flag 0"),
        (part(1, IMAGE), "cannot start a record"),
        (part(0, header(0, 1.0)), "no image"),
        (part(0, header(0, float("nan")) + b"image"), "label nan"),
        (part(0, header(0, float("inf")) + b"image"), "label inf"),
        (part(0, header(0, 0.5) + b"image"), "label 0.5"),
    ],
)
def test_damage_is_named_and_leaves_the_others_readable(tmp_path, damaged, reason):
    sound = [part(0, header(0, float(k), k) + b"image") for k in range(2)]
    lay_out(tmp_path, {0: sound[0], 1: damaged, 2: sound[1]}, properties="2,8,8")
    dataset = RecordDataset(tmp_path)
    for read in (lambda: dataset.read(1), dataset.labels):
        with pytest.raises(DamagedSampleError, match=r"rec record 1 \(offset 40\) is damaged") as caught:
            read()
        assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert dataset.read(2) == (b"image", 1)
    (tmp_path / "property").unlink()  # without it, every label is needed to count the classes
    with pytest.raises(UserError, match=r"record 1 .*is damaged"):
        RecordDataset(tmp_path)


@pytest.mark.parametrize("label", [-1.0, 2.0, 2.0**24, 1e30])
def test_a_label_outside_the_classes_is_not_one_records_damage(tmp_path, label):
    """It must not be skipped: the set and its number of classes do not belong together."""
    labels = {0: 0.0, 1: label, 2: 1.0}
    lay_out(tmp_path, {k: part(0, header(0, v, k) + b"image") for k, v in labels.items()}, properties="2,8,8")
    dataset = RecordDataset(tmp_path)
    for read in (lambda: dataset.read(1), dataset.labels):
        with pytest.raises(UserError, match=r"record 1 .*outside the 2 classes of the set") as caught:
            read()
        assert not isinstance(caught.value, DamagedSampleError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "record 0 .*0 bytes are fewer"),
        (header(2, 0.0) + struct.pack("<2f", 1e30, 6), "record 0 .*the label 1000"),
        (header(0, 0.0) + bytes(8), "ends with identity records, but record 0 does not say"),
        (header(2, 0.0) + struct.pack("<2f", 2.0**30, 2.0**30), "states .* images"),
        (header(2, 0.0) + struct.pack("<2f", 4, 2.0**25), "states 3 images and .* identities"),
    ],
)
def test_without_record_0_it_is_not_guessed_what_are_images(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        RecordDataset(lay_out(tmp_path, {**face_set(), 0: part(0, content)}, properties="2,8,8"))


def test_a_record_of_very_many_parts_takes_no_more_memory_than_the_file():
    record = part(1, b"") + part(2, b"") * 100_000 + part(3, b"end!")
    tracemalloc.start()
    payload = recordio.read_payload(reader_of(record), len(record), 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bytes(payload) == MAGIC * 100_001 + b"end!"
    assert peak < len(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "train.rec").unlink(), "holds no train.rec"),
        (
            lambda d: (d / "train.rec").write_bytes(b""),
            "is damaged: byte 0 cannot start a record in a file of 0 bytes",
        ),
        (lambda d: (d / "train.idx").write_text(""), "train.idx lists no records"),
        (lambda d: (d / "train.idx").write_text("0\t0\n1\n"), "key<TAB>offset"),
        (lambda d: (d / "train.idx").write_text("0\t0\n1\t40\n"), "states 3 images and 2 identities"),
        (lambda d: (d / "train.idx").write_text("9\t1000\n"), "record 9 .offset 1000. is damaged"),
        (lambda d: (d / "property").write_text("two,8,8"), "property must be one line"),
        (lambda d: (d / "property").write_text("9" * 5000 + ",8,8"), "property must be one line"),
        (lambda d: (d / "property").write_text("16777217,8,8"), "with 1 to 16,777,216 classes; mend it"),
        (lambda d: (d / "property").mkdir(), "property must be one line"),
        (lambda d: [(d / "train.idx").unlink(), (d / "train.idx").mkdir()], "train.idx cannot be read: Is a"),
    ],
)
def test_a_set_that_cannot_be_used_says_why(tmp_path, change, message):
    change(lay_out(tmp_path, face_set()))
    with pytest.raises(UserError, match=message) as caught:
        RecordDataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_paths_and_options_are_checked(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for name in ("nowhere", "notes.txt"):
        with pytest.raises(UserError, match=r"is no \.rec file"):
            RecordDataset(tmp_path / name)
    (tmp_path / "text.rec").write_text("this is no record file, but a text")
    with pytest.raises(UserError, match="not a RecordIO file"):
        RecordDataset(tmp_path / "text.rec")
    lay_out(tmp_path, {0: part(0, header(2, 0.0) + struct.pack("<2f", 1, 1))})
    with pytest.raises(UserError, match="no images"):
        RecordDataset(tmp_path)
    with pytest.raises(IndexError):
        RecordDataset(lay_out(tmp_path, face_set())).read(3)


def test_pickles_and_reads_from_many_threads(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for i in range(500):
            writer.write(struct.pack("<I", i) * (i + 1), i // 5)
    dataset = pickle.loads(pickle.dumps(RecordDataset(tmp_path)))
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(dataset.read, np.random.default_rng(0).permutation(500)))
    for sample in samples:
        (i,) = struct.unpack_from("<I", sample.encoded)
        assert sample.encoded == struct.pack("<I", i) * (i + 1) and sample.label == i // 5
    assert len(pickle.dumps(dataset)) < 6000  # the index, not the records


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=r"train\.rec cannot be written: File too large; make room"):  # noqa: SIM117
            with RecordWriter(tmp_path) as writer:
                grouped(writer)
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
        with (
            pytest.raises(UserError, match="another process is writing this set; wait for it"),
            RecordWriter(tmp_path / "set"),
        ):
            pass
    finally:
        other.kill()
        other.communicate()
    assert [path.name for path in (tmp_path / "set").iterdir()] == [".train.part"]
    with pytest.raises(UserError, match="no sub-directories"):
        open_dataset(tmp_path / "set")
    with RecordWriter(tmp_path / "set") as writer:
        samples = grouped(writer)
    assert all_samples(RecordDataset(tmp_path / "set")) == samples
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "property",
        "train.idx",
        "train.rec",
    ]


def test_the_largest_record_is_as_large_as_the_format_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(recordio, "MAX_LENGTH", 40)  # 24 of them are the header's
    for label, most in ((0, 16), ([0, 1], 8)):
        with RecordWriter(tmp_path / str(most)) as writer:
            writer.write(bytes(most), label)
        with (
            pytest.raises(UserError, match=f"has {most + 1} bytes; a record holds from 1 to {most}"),
            RecordWriter(tmp_path) as writer,
        ):
            writer.write(bytes(most + 1), label)


@pytest.mark.parametrize("name", ["two\nlines", "end\n", "a\u2028b", "\udcff"])
def test_class_names_that_make_no_line_are_refused_before_the_first_image(tmp_path, name):
    with pytest.raises(UserError, match="is not one line of UTF-8"):
        RecordWriter(tmp_path, classes=["fine", "", name]).__enter__()
    with pytest.raises(UserError, match="is not one line of UTF-8"), RecordWriter(tmp_path) as writer:
        writer.write(b"image", 0)
        writer.classes = [name]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train.rec", "train.idx", "property", "classes.txt"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match="not overwritten"), RecordWriter(tmp_path):
        pass
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


@pytest.mark.parametrize("label", [-1, 2**24, [0.5], [], [float("nan"), 1], [float("inf")]])
def test_labels_that_a_record_cannot_hold_are_refused(tmp_path, label):
    with pytest.raises(UserError, match="label"), RecordWriter(tmp_path) as writer:
        writer.write(b"image", label)
    with pytest.raises(UserError, match="0 bytes"), RecordWriter(tmp_path) as writer:
        writer.write(b"", 0)


@pytest.mark.parametrize("ranges", [[(1, 2), (3, 4)], [(1, 3), (2, 4)], [(1, 2), (2, 9)], [(1, 2), (2.5, 4)]])
def test_identities_that_do_not_cover_the_images_are_not_trusted(tmp_path, caplog, ranges):
    pieces = face_set()
    for key, (first, last) in zip((4, 5), ranges, strict=True):
        pieces[key] = part(0, header(2, 0.0, key) + struct.pack("<2f", first, last))
    dataset = RecordDataset(lay_out(tmp_path, pieces))
    assert dataset.labels().tolist() == [0, 1, 1]
    assert "do not cover" in caplog.text
