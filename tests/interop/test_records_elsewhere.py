"""Record sets written here, read by MXNet 1.9.1 and by DALI.

Both need environments of their own, whose interpreters are named in the environment::

    python3.11 -m venv mxnet-venv && mxnet-venv/bin/pip install numpy==1.23.5 mxnet==1.9.1
    python3.11 -m venv dali-venv && dali-venv/bin/pip install nvidia-dali-cuda120
    MEGACLASS_MXNET_PYTHON=mxnet-venv/bin/python MEGACLASS_DALI_PYTHON=dali-venv/bin/python \\
        pytest -m slow tests/interop

The other way round, what MXNet writes is read here, needs neither: ``tests/unit/data/test_records_interop.py``.
"""

import hashlib
import json
import os
import struct
import subprocess
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from megaclass.data.records import recordio
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.writer import RecordWriter

pytestmark = pytest.mark.slow
MAGIC = recordio.MAGIC_BYTES
SIDE = 24  # pixels
COMMENTS = [
    MAGIC,
    MAGIC * 3,
    b"?" + MAGIC,
    b"????" + MAGIC + b"??" + MAGIC,
    b"?" * 60_000,
    MAGIC * 2 + b"???",
]
SPLIT = 4  # of these make a record of several parts


def python(variable: str) -> str:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no interpreter")
    return os.environ[variable]


def read_elsewhere(interpreter: str, script: str, *words: str) -> dict[str, list[dict]]:
    command = [interpreter, str(Path(__file__).with_name(script)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def picture(number: int) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 256, (3, 3, 3)).astype(np.uint8)
    return cv2.resize(coarse, (SIDE, SIDE))


def png(number: int, comment: bytes) -> bytes:
    """With a comment that begins at byte 44: aligned behind any number of labels."""
    encoded = cv2.imencode(".png", picture(number))[1].tobytes()
    chunk = b"tEXtk\0?" + comment
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return encoded[:33] + text + encoded[33:]


def rgb_digest(encoded: bytes) -> str:
    decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    return digest(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).tobytes())


# name -> layout and labels of as many images as there are comments
SETS = {
    "plain": (False, [0, 1, 0, 2, 16_777_215, 2]),
    "plain_vectors": (False, [(label, 0.25 * label, -1e-3) for label in (0, 0, 1, 1, 2, 2)]),
    "faces": (True, [0, 0, 1, 1, 1, 2]),
    "faces_vectors": (True, [(label, 1.0) for label in (0, 0, 0, 1, 2, 2)]),
    "faces_not_grouped": (True, [2, 0, 1, 2, 0, 1]),
}


@pytest.fixture(params=SETS)
def written(request, tmp_path):
    """The path of a set, whether it has an index record, and (labels, encoded) of its images."""
    index_record, labels = SETS[request.param]
    images = [png(number, comment) for number, comment in enumerate(COMMENTS)]
    with RecordWriter(tmp_path, index_record=index_record, image_size=(SIDE, SIDE)) as writer:
        for image, label in zip(images, labels, strict=True):
            writer.write(image, label)
    words = np.fromfile(writer.path, "<u4")
    assert (words[recordio.find_records(words) // 4 + 1] >> 29).tolist().count(1) == SPLIT
    vectors = [np.atleast_1d(label).astype(np.float32).tolist() for label in labels]
    return writer.path, index_record, list(zip(vectors, images, strict=True))


def test_mxnet_reads_what_is_written_here(written):
    rec, index_record, samples = written
    words = [str(rec), str(len(samples[0][0]))]
    if not index_record:
        words += [str(SIDE), str(SIDE)]
    readers = read_elsewhere(python("MEGACLASS_MXNET_PYTHON"), "read_with_mxnet.py", *words)

    expected = [(labels, digest(image)) for labels, image in samples]
    for name in ("indexed", "in_order"):
        found = [(record["labels"], record["sha256"], record["key"]) for record in readers[name]]
        images = found[index_record : index_record + len(samples)]
        assert [(labels, sha256) for labels, sha256, _ in images] == expected
        assert [key for *_, key in found] == list(range(len(found)))
    if not index_record:
        assert len(readers["indexed"]) == len(samples)
        pixels = [(labels, rgb_digest(image)) for labels, image in samples]
        for name in ("record_iter", "gluon"):
            assert [(record["labels"], record["sha256"]) for record in readers[name]] == pixels
        return
    # The numbers by which InsightFace finds the images, and those of each identity.
    first, stop = (int(label) for label in readers["indexed"][0]["labels"])
    assert (first, stop) == (len(samples) + 1, len(readers["indexed"]))
    ranges = [tuple(map(int, record["labels"])) for record in readers["indexed"][first:stop]]
    dataset = RecordDataset(rec)
    for a, b in ranges:
        assert len(set(dataset.labels()[a - 1 : b - 1].tolist())) == 1
    assert sum(b - a for a, b in ranges) == (len(samples) if ranges else 0)


def test_dali_reads_what_is_written_here(written):
    rec, index_record, samples = written
    found = read_elsewhere(python("MEGACLASS_DALI_PYTHON"), "read_with_dali.py", str(rec))["dali"]
    found = [(record["labels"], record["sha256"]) for record in found]
    expected = [(labels, digest(image)) for labels, image in samples]
    # DALI takes every record for an image: the index record, and behind the images the identities.
    assert found[index_record : index_record + len(samples)] == expected
    assert all(
        sha256 == digest(b"") for _, sha256 in found[:index_record] + found[index_record + len(samples) :]
    )
    assert index_record or len(found) == len(samples)
