"""Record sets damaged at random, from the opening to the last sample: read right, or refused in one line.

Any exception but UserError fails here, and so does a set that takes more memory than a small multiple of its files.
"""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megaclass.data.records import recordio
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.recordfile import read_index
from megaclass.errors import UserError
from record_sets import write_set

SOUND = [(bytes([65 + i]) * (5 * i + 1) + recordio.MAGIC_BYTES * (i % 3), i // 3) for i in range(9)]
NUMBERS = [
    -(2**63), -4, -1, 0, 1, 2, 3, 9, 10, 44, 2**24, 2**31, 2**32, 2**63 - 8, 2**63 - 1, 2**64 - 1, 10**40,
]  # fmt: skip
WORDS = [
    0, 1, 2, 23, 24, 2**29 - 1, 2**29, 2**30, 3 << 29, 2**31, 2**32 - 1, recordio.MAGIC, 0x7FC00000, 0xBF800000,
]  # fmt: skip
PROPERTIES = [
    b"3,8,8", b"3,8,8\n9\n", b"1,8,8", b"0,8,8", b"-3,8,8", b"16777216,8,8", b"1e9,8,8", b"3,8", b"\xff,8,8",
    b"", b"\n\n", b"9" * 5000, b"\0" * 99, b"3,8,8," * 999,
]  # fmt: skip
BYTES_MORE = 3 << 20  # what opening and reading may take beside a small multiple of the files


def sound_set(directory: Path, layout: str) -> None:
    """Nine images of three classes; the layouts are those of RecordWriter and of face2rec2, record 0 behind them."""
    if layout != "face2rec2":
        write_set(directory, SOUND, index_record=layout == "faces")
        return
    records = [(i + 1, (label, 1), encoded) for i, (encoded, label) in enumerate(SOUND)]
    records += [(0, (10, 13), b""), (10, (1, 4), b""), (11, (4, 7), b""), (12, (7, 10), b"")]
    rec, idx = b"", b""
    for key, labels, encoded in records:
        idx += f"{key}\t{len(rec)}\n".encode()
        rec += recordio.frame(recordio.pack_payload(key, labels, encoded))
    for name, content in (("train.rec", rec), ("train.idx", idx), ("property", b"3,8,8")):
        (directory / name).write_bytes(content)


def damage_records(data: st.DataObject, rec: bytearray) -> None:
    records = recordio.find_records(np.frombuffer(bytes(rec), "<u4")).tolist()
    for _ in range(data.draw(st.integers(1, 3))):
        # A field of a head or a header (magic, length, flag, label, ids, labels), or anywhere.
        at = data.draw(st.sampled_from(records)) + 4 * data.draw(st.integers(0, 9))
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(rec)))
        kind = data.draw(st.sampled_from(["word", "word", "byte", "cut", "insert", "move"]))
        if kind == "word":
            rec[at : at + 4] = struct.pack("<I", data.draw(st.sampled_from(WORDS)))
        elif kind == "byte":
            rec[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut":
            del rec[at:]
        elif kind == "insert":
            rec[at:at] = data.draw(st.binary(max_size=9) | st.just(recordio.MAGIC_BYTES * 9))
        else:
            other = data.draw(st.integers(0, len(rec)))
            rec[at : at + 40] = rec[other : other + 40]


def damage_index(data: st.DataObject, idx: bytearray) -> None:
    lines = [line.split(b"\t") for line in bytes(idx).splitlines()]
    known = NUMBERS + [int(offset) for _, offset in lines]
    for _ in range(data.draw(st.integers(1, 3))):
        row, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        kind = data.draw(st.sampled_from(["offset", "key", "repeat", "swap", "drop"]))
        if kind in ("offset", "key"):
            lines[row] = list(lines[row])
            lines[row][kind == "offset"] = str(data.draw(st.sampled_from(known))).encode()
        elif kind == "repeat":
            lines.insert(row, lines[other])
        elif kind == "swap":
            lines[row], lines[other] = [lines[row][0], lines[other][1]], [lines[other][0], lines[row][1]]
        elif len(lines) > 1:
            del lines[row]
    idx[:] = b"".join(b"\t".join(line) + b"\n" for line in lines)
    if data.draw(st.booleans()):
        idx[data.draw(st.integers(0, len(idx) - 1))] = data.draw(st.integers(0, 255))
    idx += data.draw(st.sampled_from([b"", b"", b"\0", b"\n\n", b"garbage\n", b"5\t5\t5\n", b"\xff" * 99]))


def refused(error: UserError, directory: Path) -> None:
    assert str(directory) in str(error) and "\n" not in str(error)


def life(directory: Path, *, untouched: bool, plain: bool) -> None:
    """Open the set, read every label and every sample; each comes out right or as an error of one line.

    ``untouched``: the records are sound. ``plain``: there are no identities, so every label is read.
    """
    try:
        dataset = RecordDataset(directory)
    except UserError as error:
        return refused(error, directory)
    read: list[tuple[bytes, int] | None] = []
    for i in range(len(dataset)):
        try:
            encoded, label = dataset.read(i)
        except UserError as error:
            refused(error, directory)
            read.append(None)
        else:
            assert encoded and 0 <= label < dataset.num_classes
            read.append((encoded, label))
    try:
        labels = dataset.labels()
    except UserError as error:
        return refused(error, directory)
    assert not plain or None not in read  # no other label stands for one that is lost
    assert labels.shape == (len(dataset),) and 0 <= labels.min() <= labels.max() < dataset.num_classes
    if untouched:  # whatever the index says, a sample is one of theirs, and its label the same
        for sample, label in zip(read, labels.tolist(), strict=True):
            assert sample is None or (sample in SOUND and sample[1] == label)
    return None


@settings(max_examples=200, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_in_one_line_or_read_right(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("set")
    layout = data.draw(st.sampled_from(["faces", "face2rec2", "plain"]))
    sound_set(directory, layout)
    damaged = data.draw(st.sets(st.sampled_from(["rec", "idx", "property"]), min_size=1))
    sizes = 0
    for suffix, damage in (("rec", damage_records), ("idx", damage_index)):
        content = bytearray((directory / f"train.{suffix}").read_bytes())
        if suffix in damaged:
            damage(data, content)
            (directory / f"train.{suffix}").write_bytes(content)
        sizes += len(content)
    if "property" in damaged:
        (directory / "property").write_bytes(data.draw(st.sampled_from(PROPERTIES)))
    for name in data.draw(st.sampled_from([(), (), ("train.idx",), ("property",), ("train.idx", "property")])):
        (directory / name).unlink()
    tracemalloc.start()
    try:
        life(directory, untouched="rec" not in damaged, plain=layout == "plain")
        assert tracemalloc.get_traced_memory()[1] < BYTES_MORE + 8 * sizes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_the_lines_of_an_index_are_read_as_they_stand(tmp_path, end):
    lines = [(5, 40), (-(2**62), 2**62), (5, -4), (0, 0)]
    (tmp_path / "train.idx").write_bytes("".join(f"{key}\t{offset}{end}" for key, offset in lines).encode())
    found = read_index(tmp_path / "train.idx")
    assert list(zip(found.keys_N.tolist(), found.offsets_N.tolist(), strict=True)) == lines


@pytest.mark.parametrize(
    "content",
    [
        b"1" * 3_000_000,
        b"1\t2\n" + b"x" * 9000,
        b"1\t2\t3\n4\n",  # as many numbers as two lines have
        b"1\t2.5\n",
        b"1\t2\n#\n",
        b"-99999999999999999999\t1\n",
        b"\xff\t1\n",
    ],
)
def test_what_is_no_index_is_refused_at_once(tmp_path, content):
    (tmp_path / "train.idx").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="not every line is 'key<TAB>offset'"):
            read_index(tmp_path / "train.idx")
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
