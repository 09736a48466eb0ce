"""Record sets that MXNet wrote.

``tests/fixtures/records`` was written by MXNet 1.9.1 with NumPy 1.23.5 and OpenCV 4.8.1: by its ``im2rec.py``
(``im2rec_*``), and by ``MXIndexedRecordIO`` in the layouts of InsightFace's face2rec2 and of RecordWriter, also with
payloads that hold the magic; the script, ``make_mxnet_records.py``, is in the history before 0.2.0.
``expected.json`` is what MXNet reads from them: of each record the key, header, first four labels, size and SHA-256;
of ``raw`` the payload.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.records import recordio
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.recordfile import RecordFile
from megaclass.data.records.writer import RecordWriter
from record_sets import all_samples

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
    samples = [(digest(encoded), label) for encoded, label in all_samples(dataset)]
    assert samples == [(record["sha256"], int(record["labels"][0])) for record in images(name)]
    assert dataset.num_classes == max(label for _, label in samples) + 1


@pytest.mark.parametrize("name", IMAGE_SETS)
@pytest.mark.parametrize("leave_out", ["", "property", "train.idx"])
def test_reads_what_mxnet_wrote(name, leave_out, tmp_path):
    """Record 0 is not always the first of the file: face2rec2 puts it behind the images."""
    check(RecordDataset(copy(name, tmp_path, leave_out=leave_out)), name)


def offsets(name: str) -> list[int]:
    return [int(line.split("\t")[1]) for line in (FIXTURES / name / "train.idx").read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(EXPECTED))
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
