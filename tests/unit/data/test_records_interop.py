"""Record sets of other people: files that MXNet wrote, and layouts met in the wild.

``tests/fixtures/records`` was written by MXNet 1.9.1, see ``make_mxnet_records.py`` beside it; ``expected.json`` is
what MXNet reads from it.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.records import recordio
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.recordfile import RecordFile
from megaclass.data.records.writer import RecordWriter
from megaclass.errors import UserError

FIXTURES = Path(__file__).parents[2] / "fixtures/records"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
IMAGE_SETS = sorted(EXPECTED.keys() - {"raw", "edges"})


def images(name: str) -> list[dict]:
    """What MXNet read of the images, in the order in which a RecordDataset has them."""
    records = [record for record in EXPECTED[name] if record["bytes"]]
    if len(records) < len(EXPECTED[name]):  # there is an index record: images are sorted by their keys
        records.sort(key=lambda record: record["key"])
    return records


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def copy(name: str, directory: Path, *, leave_out: str) -> Path:
    for path in (FIXTURES / name).iterdir():
        if path.name != leave_out:
            (directory / path.name).write_bytes(path.read_bytes())
    return directory


def check(dataset: RecordDataset, name: str) -> None:
    """The dataset has the bytes, the labels, their order and the number of classes of the set ``name``."""
    samples = [dataset.read(i) for i in range(len(dataset))]
    assert [digest(sample.encoded) for sample in samples] == [record["sha256"] for record in images(name)]
    labels = [int(record["labels"][0]) for record in images(name)]
    assert [sample.label for sample in samples] == labels
    assert dataset.labels().tolist() == labels
    assert dataset.num_classes == max(labels) + 1


# ---- written by MXNet ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_SETS)
@pytest.mark.parametrize("leave_out", ["", "property", "train.idx"])
def test_reads_what_mxnet_wrote(name, leave_out, tmp_path):
    """Record 0 is not always the first of the file: face2rec2 puts it behind the images, rec_builder last."""
    check(RecordDataset(copy(name, tmp_path, leave_out=leave_out)), name)


def offsets(name: str) -> list[int]:
    return [int(line.split("\t")[1]) for line in (FIXTURES / name / "train.idx").read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - {"without_index"}))
def test_a_scan_finds_every_record_and_nothing_else(name):
    words = np.frombuffer((FIXTURES / name / "train.rec").read_bytes(), "<u4")
    assert recordio.find_records(words).tolist() == offsets(name)


def test_any_payload_is_framed_as_by_mxnet_and_read_back():
    """The magic first, last, alone, in a row, not aligned; and nothing at all."""
    rec = (FIXTURES / "raw/train.rec").read_bytes()
    payloads = [bytes.fromhex(record["payload"]) for record in EXPECTED["raw"]]
    assert b"".join(map(recordio.frame, payloads)) == rec
    file = RecordFile(FIXTURES / "raw/train.rec")
    assert [bytes(file.payload(at)) for at in offsets("raw")] == payloads


def test_reads_every_padding_and_a_magic_in_any_field():
    """Images of 0 to 8 bytes, and the magic as image, id and label; of these only the empty one is damaged."""
    dataset = RecordDataset(FIXTURES / "edges")
    assert len(dataset) == len(EXPECTED["edges"]) and dataset.num_classes == 3
    with pytest.raises(DamagedSampleError, match=r"record 1 .* there is no image"):
        dataset.read(0)
    for i, record in enumerate(EXPECTED["edges"][1:], 1):
        encoded, label = dataset.read(i)
        assert (digest(encoded), label) == (record["sha256"], record["labels"][0])
    file = RecordFile(FIXTURES / "edges/train.rec")
    for record, at in zip(EXPECTED["edges"], offsets("edges"), strict=True):
        labels, image = recordio.unpack_payload(file.payload(at))
        assert (labels, len(image)) == (tuple(record["labels"][:2]), record["bytes"])


@pytest.mark.parametrize(("name", "index_record"), [("faces_in_order", True), ("plain_in_order", False)])
def test_writes_the_same_bytes_as_mxnet(name, index_record, tmp_path):
    theirs = RecordDataset(FIXTURES / name)
    with RecordWriter(tmp_path, index_record=index_record) as writer:
        for i, record in enumerate(images(name)):
            labels = record["labels"] if record["flag"] else int(record["labels"][0])
            writer.write(theirs.read(i).encoded, labels)
    for file in ("train.rec", "train.idx", "property"):
        assert (tmp_path / file).read_bytes() == (FIXTURES / name / file).read_bytes()


# ---- in the wild: what public readers and writers made of the layout ------------------------------------


def write_set(
    directory: Path,
    records: list[tuple[int, list[float] | float, bytes]],
    properties: str | None = None,
    ids: list[int] | None = None,
) -> Path:
    """A set of records (key, label or labels, image) in the order given."""
    rec, idx = b"", ""
    for number, (key, label, image) in enumerate(records):
        labels = label if isinstance(label, list) else [label]
        idx += f"{key}\t{len(rec)}\n"
        rec += recordio.frame(recordio.pack_payload(ids[number] if ids else key, labels, image))
    (directory / "train.rec").write_bytes(rec)
    (directory / "train.idx").write_bytes(idx.encode())
    if properties is not None:
        (directory / "property").write_bytes(properties.encode())
    return directory


def contents(dataset: RecordDataset) -> list[tuple[bytes, int]]:
    samples = [tuple(dataset.read(i)) for i in range(len(dataset))]
    assert dataset.labels().tolist() == [label for _, label in samples]
    return samples


FACES = [(1, 0.0, b"a"), (2, 0.0, b"b"), (3, 1.0, b"c")]
IDENTITIES = [(4, [1.0, 3.0], b""), (5, [3.0, 4.0], b"")]
FACE_SET = [(0, [4.0, 6.0], b""), *FACES, *IDENTITIES]
FACE_SAMPLES = [(b"a", 0), (b"b", 0), (b"c", 1)]


@pytest.mark.parametrize(
    "properties",
    [
        "2,112,112",
        "2,112,112\r\n",
        "2,112,112\n3\n",  # insightface's RecBuilder adds the number of images
        "2,112,112\n3\nshuffled\n2021-03-04 05:06:07.891011\n",  # its rec2shufrec.py some more
    ],
)
def test_property_may_have_more_lines(properties, tmp_path):
    dataset = RecordDataset(write_set(tmp_path, FACE_SET, properties))
    assert dataset.num_classes == 2 and contents(dataset) == FACE_SAMPLES


@pytest.mark.parametrize(
    "index",
    [
        (0, [4.0, 2.0], b""),  # images and identities are counted, identities have no records
        (0, [4.0, 2.0, 17.0], b""),  # and a third number, where a set was cut out of another one
        (0, [4.0, 4.0], b""),
    ],
)
def test_record_0_may_state_identities_that_have_no_records(index, tmp_path):
    assert contents(RecordDataset(write_set(tmp_path, [*FACES, index]))) == FACE_SAMPLES


def test_record_0_may_carry_a_picture(tmp_path):
    """Converters that know pack_img only put one there. arcface_torch takes record 0 by its label vector.

    It cannot be an image of its class: a set of four records has at most the labels 0..3.
    """
    dataset = RecordDataset(write_set(tmp_path, [(0, [4.0, 2.0], b"picture"), *FACES], "2,112,112"))
    assert contents(dataset) == FACE_SAMPLES


def test_identities_may_repeat_a_class(tmp_path):
    """face2rec2 makes one of each run of labels: Glint360K came with 416,042 for its 360,232 classes."""
    images = [(1, 0.0, b"a"), (2, 1.0, b"b"), (3, 0.0, b"c")]
    identities = [(4, [1.0, 2.0], b""), (5, [2.0, 3.0], b""), (6, [3.0, 4.0], b"")]
    dataset = RecordDataset(write_set(tmp_path, [(0, [4.0, 7.0], b""), *images, *identities]))
    assert contents(dataset) == [(b"a", 0), (b"b", 1), (b"c", 0)]
    assert dataset.num_classes == 2


def test_labels_may_have_gaps(tmp_path):
    """A set from which classes were dropped and not numbered anew has more classes than identities."""
    images = [(1, 0.0, b"a"), (2, 0.0, b"b"), (3, 7.0, b"c")]
    dataset = RecordDataset(write_set(tmp_path, [FACE_SET[0], *images, *IDENTITIES]))
    assert contents(dataset) == [(b"a", 0), (b"b", 0), (b"c", 7)] and dataset.num_classes == 8


@pytest.mark.parametrize("keys", [(1, 2, 3), (100, 7, 50), (-3, -2, -1), (2**40, 2**62, 5)])
def test_plain_sets_may_have_any_keys(keys, tmp_path):
    records = [(key, label, image) for key, (_, label, image) in zip(keys, FACES, strict=True)]
    ids = [key % 2**64 for key in keys]
    assert contents(RecordDataset(write_set(tmp_path, records, ids=ids))) == FACE_SAMPLES


@pytest.mark.parametrize("ids", [[0, 0, 0], [7, 7, 8], [3, 1, 2], [2**63, 2**64 - 1, 1]])
def test_the_ids_of_plain_sets_do_not_matter(ids, tmp_path):
    """shuffle_rec.py keeps those of the set before, others leave them 0; with the index and without."""
    write_set(tmp_path, FACES, ids=ids)
    assert sorted(contents(RecordDataset(tmp_path))) == FACE_SAMPLES
    (tmp_path / "train.idx").unlink()
    assert sorted(contents(RecordDataset(tmp_path))) == FACE_SAMPLES


def test_offsets_may_be_beyond_4_gb(tmp_path):
    """The file is sparse: it takes a page or two of the disk."""
    write_set(tmp_path, [(0, 0.0, b"near"), (1, 1.0, b"far")])
    first, second = recordio.find_records(np.fromfile(tmp_path / "train.rec", "<u4")).tolist()
    rec, far = (tmp_path / "train.rec").read_bytes(), 5 << 30
    with (tmp_path / "train.rec").open("r+b") as file:
        file.truncate(second)
        file.seek(far)
        file.write(rec[second:])
    (tmp_path / "train.idx").write_text(f"0\t{first}\n1\t{far}\n")
    assert contents(RecordDataset(tmp_path)) == [(b"near", 0), (b"far", 1)]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (FACE_SET[1:], "identity records"),  # record 0 is lost
        ([*FACE_SET, FACE_SET[3]], "lists 1 keys more than once, 3 the first"),  # two sets in one index
        ([*FACES, FACES[0]], "lists 1 keys more than once, 1 the first"),  # the same of im2rec's
        ([(0, [4.0], b""), *FACES], "record 0 .* damaged: there is no image"),  # labels of another layout
        ([(0, [4.0, math.nan], b""), *FACES], "record 0 "),
    ],
)
def test_face_sets_that_contradict_themselves_are_refused(records, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        RecordDataset(write_set(tmp_path, records))
    assert "\n" not in str(caught.value)


def test_an_index_that_is_mixed_up_gives_no_image_the_label_of_another(tmp_path):
    """Two images of different classes have changed places in the index, so identities no longer tell their labels."""
    write_set(tmp_path, FACE_SET, "2,8,8")
    lines = [line.split("\t") for line in (tmp_path / "train.idx").read_text().splitlines()]
    lines[2][1], lines[3][1] = lines[3][1], lines[2][1]
    (tmp_path / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in lines))
    assert contents(RecordDataset(tmp_path)) == [(b"a", 0), (b"c", 1), (b"b", 0)]
