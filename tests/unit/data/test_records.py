"""Reading record sets: against bytes laid out by hand, as public readers and writers made them, and damaged."""

import math
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.records import reader
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError
from record_sets import all_samples, write_set

MAGIC = b"\x0a\x23\xd7\xce"


def part(flag: int, content: bytes) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(content)) + content + bytes(-len(content) % 4)


def header(flag: int, label: float, key: int = 0) -> bytes:
    return struct.pack("<IfQQ", flag, label, key % 2**64, 0)


def record(key: int, label: float | list[float], image: bytes = b"") -> tuple[int, bytes]:
    """A key and its record of one part, with one label or a vector."""
    if not isinstance(label, list):
        return key, part(0, header(0, label, key) + image)
    return key, part(0, header(len(label), 0.0, key) + struct.pack(f"<{len(label)}f", *label) + image)


def lay_out(directory, records, properties: str | None = None):
    """Write records (key, bytes) as train.rec and train.idx, without the code under test."""
    rec, lines = b"", ""
    for key, content in records:
        lines += f"{key}\t{len(rec)}\n"
        rec += content
    (directory / "train.rec").write_bytes(rec)
    (directory / "train.idx").write_text(lines)
    if properties is not None:
        (directory / "property").write_bytes(properties.encode())
    return directory


# Three images of two identities, one with a vector label, one split at a magic, as public sets lie.
SPLIT = part(1, header(0, 1.0, 3) + b"abcd") + part(2, b"") + part(3, b"tail!")  # the magic is aligned
IMAGES = [record(1, 0.0, b"first"), record(2, [1.0, 0.25], b"second"), (3, SPLIT)]
IDENTITIES = [record(4, [1.0, 2.0]), record(5, [2.0, 4.0])]
FACE_SET = [record(0, [4.0, 6.0]), *IMAGES, *IDENTITIES]
SAMPLES = [(b"first", 0), (b"second", 1), (b"abcd" + MAGIC + MAGIC + b"tail!", 1)]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(
    "properties",
    [
        None,
        "2,112,112\r\n",
        "2,112,112\n3\nshuffled\n2021-03-04 05:06:07.891011\n",  # its rec2shufrec.py some more
    ],
)
def test_reads_a_face_set(tmp_path, index, properties):
    lay_out(tmp_path, FACE_SET, properties)
    if not index:
        (tmp_path / "train.idx").unlink()
    dataset = RecordDataset(tmp_path)
    assert all_samples(dataset) == SAMPLES and dataset.num_classes == 2
    assert dataset.labels().dtype == np.int64
    assert dataset.describe(1) == f"{tmp_path}/train.rec record 2 (offset {40 + 40})"


@pytest.mark.parametrize(
    "records",
    [
        FACE_SET[::-1],
        # Record 0 may state identities that have no records, in the place of keys, and a third number
        # where a set was cut out of another one.
        [record(0, [4.0, 4.0]), *IMAGES],
        [record(0, [4.0, 6.0]), *IMAGES],
        [*IMAGES, record(0, [4.0, 2.0])],
        [*IMAGES, record(0, [4.0, 2.0, 17.0])],
        # Converters that know pack_img only put a picture there. It cannot be an image of its class: a set of four
        # records has at most the labels 0..3.
        [record(0, [4.0, 2.0], b"picture"), *IMAGES],
        # Plain sets may have any keys.
        *(
            [(key, content) for key, (_, content) in zip(keys, IMAGES, strict=True)]
            for keys in ((100, 7, 50), (-3, -2, -1), (2**40, 2**62, 5))
        ),
    ],
)
def test_reads_what_public_writers_made_of_the_layout(tmp_path, records):
    dataset = RecordDataset(lay_out(tmp_path, records))
    assert all_samples(dataset) == SAMPLES and dataset.num_classes == 2


def test_identities_may_repeat_a_class_and_labels_may_have_gaps(tmp_path):
    """face2rec2 makes one of each run of labels: Glint360K came with 416,042 for its 360,232 classes. A set from
    which classes were dropped and not numbered anew has more classes than identities."""
    images = [record(1, 0.0, b"a"), record(2, 7.0, b"b"), record(3, 0.0, b"c")]
    identities = [record(4, [1.0, 2.0]), record(5, [2.0, 3.0]), record(6, [3.0, 4.0])]
    dataset = RecordDataset(lay_out(tmp_path, [record(0, [4.0, 7.0]), *images, *identities]))
    assert all_samples(dataset) == [(b"a", 0), (b"b", 7), (b"c", 0)] and dataset.num_classes == 8


@pytest.mark.parametrize("ids", [[0, 0, 0], [7, 7, 8], [3, 1, 2], [2**63, 2**64 - 1, 1]])
def test_the_ids_of_plain_sets_do_not_matter(tmp_path, ids):
    """shuffle_rec.py keeps those of the set before, others leave them 0; with the index and without."""
    lay_out(tmp_path, [(k, record(ids[k], float(k), b"image")[1]) for k in range(3)])
    assert sorted(all_samples(RecordDataset(tmp_path))) == [(b"image", k) for k in range(3)]
    (tmp_path / "train.idx").unlink()
    assert sorted(all_samples(RecordDataset(tmp_path))) == [(b"image", k) for k in range(3)]


def test_a_rounded_image_count_is_corrected(tmp_path, monkeypatch):
    """Beyond 2**24 images, record 0 cannot hold the count exactly: the first identity is looked up."""
    monkeypatch.setattr(reader, "MAX_EXACT", 4)
    monkeypatch.setattr(np, "spacing", lambda value: 2.0)
    dataset = RecordDataset(lay_out(tmp_path, [record(0, [3.0, 5.0]), *FACE_SET[1:]]))
    assert all_samples(dataset) == SAMPLES and dataset.num_classes == 2


@pytest.mark.parametrize("ranges", [[(1, 2), (3, 4)], [(1, 3), (2, 4)], [(1, 2), (2, 9)], [(1, 2), (2.5, 4)]])
def test_identities_that_do_not_cover_the_images_are_not_trusted(tmp_path, caplog, ranges):
    identities = [record(key, [*bounds]) for key, bounds in zip((4, 5), ranges, strict=True)]
    assert all_samples(RecordDataset(lay_out(tmp_path, [*FACE_SET[:4], *identities]))) == SAMPLES
    assert "do not cover" in caplog.text


def test_an_index_that_is_mixed_up_gives_no_image_the_label_of_another(tmp_path):
    """Two images of different classes have changed places in the index, so identities no longer tell their labels."""
    lay_out(tmp_path, FACE_SET, "2,8,8")
    lines = [line.split("\t") for line in (tmp_path / "train.idx").read_text().splitlines()]
    lines[1][1], lines[2][1] = lines[2][1], lines[1][1]
    (tmp_path / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in lines))
    assert all_samples(RecordDataset(tmp_path)) == [SAMPLES[1], SAMPLES[0], SAMPLES[2]]


def test_offsets_may_be_beyond_4_gb(tmp_path):
    """The file is sparse: it takes a page or two of the disk."""
    near, far = (record(k, float(k), b"image")[1] for k in range(2))
    with (tmp_path / "train.rec").open("wb") as file:
        file.write(near)
        file.seek(5 << 30)
        file.write(far)
    (tmp_path / "train.idx").write_text(f"0\t0\n1\t{5 << 30}\n")
    assert all_samples(RecordDataset(tmp_path)) == [(b"image", 0), (b"image", 1)]


def test_pickles_and_reads_from_many_threads(tmp_path):
    samples = [(struct.pack("<I", i) * (i + 1), i // 5) for i in range(500)]
    write_set(tmp_path, samples)
    dataset = pickle.loads(pickle.dumps(RecordDataset(tmp_path)))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(dataset.read, range(500))) == samples
    assert len(pickle.dumps(dataset)) < 6000  # the index, not the records
    with pytest.raises(IndexError):
        dataset.read(500)


# -- damage ----------------------------------------------------------------------------------------------


IMAGE = header(0, 0.0) + b"image"


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (b"\x0b" + part(0, IMAGE)[1:], "magic number is 0xced7230b"),
        (part(0, IMAGE[:20]), "20 bytes are fewer than the 24 of a header"),
        (MAGIC + struct.pack("<I", 1 << 20) + IMAGE + b"...", "1048576 bytes from byte"),
        (part(0, header(1000, 0.0) + b"image"), "1000 labels do not fit"),
        (part(1, IMAGE + b"...") + part(1, IMAGE), "part 1 has the flag 1"),
        (part(1, IMAGE), "cannot start a record"),
        (part(0, header(0, 1.0)), "no image"),
        (part(0, header(0, math.nan) + b"image"), "label nan"),
        (part(0, header(0, 0.5) + b"image"), "label 0.5"),
    ],
)
def test_damage_is_named_and_leaves_the_others_readable(tmp_path, damaged, reason):
    lay_out(tmp_path, [record(0, 0.0, b"image"), (1, damaged), record(2, 1.0, b"image")], "2,8,8")
    dataset = RecordDataset(tmp_path)
    for read in (lambda: dataset.read(1), dataset.labels):
        with pytest.raises(DamagedSampleError, match=r"rec record 1 \(offset 40\) is damaged") as caught:
            read()
        assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert dataset.read(2) == (b"image", 1)
    (tmp_path / "property").unlink()  # without it, every label is needed to count the classes
    with pytest.raises(UserError, match=r"record 1 .*is damaged"):
        RecordDataset(tmp_path)


@pytest.mark.parametrize("label", [-1.0, 2.0, 1e30])
def test_a_label_outside_the_classes_is_not_one_records_damage(tmp_path, label):
    """It must not be skipped: the set and its number of classes do not belong together."""
    dataset = RecordDataset(
        lay_out(tmp_path, [record(k, v, b"image") for k, v in enumerate([0.0, label, 1.0])], "2,8,8")
    )
    for read in (lambda: dataset.read(1), dataset.labels):
        with pytest.raises(UserError, match=r"record 1 .*outside the 2 classes of the set") as caught:
            read()
        assert not isinstance(caught.value, DamagedSampleError)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (FACE_SET[1:], "ends with identity records, but record 0 does not say"),
        ([(0, part(0, b"")), *FACE_SET[1:]], "record 0 .*0 bytes are fewer"),
        ([record(0, [1e30, 6.0]), *FACE_SET[1:]], "record 0 .*the label 1000"),
        ([record(0, [4.0]), *IMAGES], "record 0 .* damaged: there is no image"),  # labels of another layout
        ([record(0, [2.0**30, 2.0**30]), *FACE_SET[1:]], "states .* images"),
        ([record(0, [4.0, 2.0**25]), *FACE_SET[1:]], "states 3 images and .* identities"),
        ([*FACE_SET, IMAGES[2]], "lists key 3 more than once"),  # two sets in one index
        ([record(0, [1.0, 1.0])], "holds no images"),
    ],
)
def test_it_is_not_guessed_what_are_images(tmp_path, records, message):
    with pytest.raises(UserError, match=message) as caught:
        RecordDataset(lay_out(tmp_path, records, "2,8,8"))
    assert "\n" not in str(caught.value)


DIRECTORY = object()  # in the place of a file


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.rec", None, r"is no \.rec file and holds no train\.rec"),
        ("train.rec", "", "is damaged: byte 0 cannot start a record in a file of 0 bytes"),
        ("train.idx", "", "train.idx lists no records"),
        ("train.idx", "0\t0\n1\n", "key<TAB>offset"),
        ("train.idx", f"0\t{2**64 - 1}\n", "key<TAB>offset"),  # of MXNet where it failed to find the position
        ("train.idx", "0\t0\n1\t40\n", "states 3 images and 2 identities"),
        ("train.idx", "9\t1000\n", "record 9 .offset 1000. is damaged"),
        ("train.idx", DIRECTORY, "train.idx cannot be read: it is a directory"),
        ("property", "two,8,8", "property must be one line"),
        ("property", "16777217,8,8", "with 1 to 16,777,216 classes; mend it"),
        ("property", DIRECTORY, "property must be one line"),
    ],
)
def test_a_set_that_cannot_be_used_says_why(tmp_path, name, content, message):
    path = lay_out(tmp_path, FACE_SET, "2,8,8") / name
    path.unlink()
    if content is DIRECTORY:
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        RecordDataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_record_file_is_told(tmp_path):
    (tmp_path / "text.rec").write_text("this is no record file, but a text")
    with pytest.raises(UserError, match="not a RecordIO file"):
        RecordDataset(tmp_path / "text.rec")
    (tmp_path / "notes.txt").write_text("x")
    for name in ("nowhere", "notes.txt"):
        with pytest.raises(UserError, match=r"is no \.rec file"):
            RecordDataset(tmp_path / name)
