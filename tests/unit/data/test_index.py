"""The text of an index: read as it stands, whatever the length of its lines and pieces."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.data.records import index
from megaclass.errors import UserError

numbers = st.one_of(st.integers(0, 99), st.integers(0, 2**62))


def read(directory, content: bytes):
    path = directory / "train.idx"
    path.write_bytes(content)
    return index.read_index(path)


@settings(deadline=None)
@given(
    lines=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30),
    counted=st.none() | st.integers(0, 10**9),
    piece=st.integers(1, 64),
)
def test_lines_are_read_as_they_stand(tmp_path_factory, lines, counted, piece):
    if counted is not None:  # keys that count up, as sets have them
        lines = [(counted + i, offset) for i, (_, offset) in enumerate(lines)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_PIECE_BYTES", piece)
        text = "".join(f"{key}\t{offset}\n" for key, offset in lines)
        found = read(tmp_path_factory.mktemp("idx"), text.encode())
    keys, offsets = found.keys, found.offsets_N
    assert list(keys) == [key for key, _ in lines]
    assert offsets.dtype == np.int64 and offsets.tolist() == [offset for _, offset in lines]
    assert isinstance(keys, range) or counted is None
    assert len(found) == len(lines)


@given(line=st.binary(min_size=4, max_size=12), sound=st.integers(1, 5))
def test_no_byte_but_a_digit_is_one(tmp_path_factory, line, sound):
    """A line of any bytes among sound ones of its length: refused, or read as Python reads it."""
    line = line.replace(b"\n", b"x") + b"\n"
    beside = b"1".rjust(len(line) // 2, b"1") + b"\t"
    beside += b"2" * (len(line) - 1 - len(beside)) + b"\n"
    content = beside * sound + line + beside
    try:
        found = read(tmp_path_factory.mktemp("idx"), content)
    except UserError:
        return
    fields = content.split()
    assert list(found.keys) == [int(key) for key in fields[0::2]]
    assert found.offsets_N.tolist() == [int(offset) for offset in fields[1::2]]


@pytest.mark.parametrize(
    "content",
    [
        b"1" * 3_000_000,
        b"\0" * 3_000_000,
        b"1\t2\n" + b"x" * 9000,
        b"1\t2 3\n",
        b"1\t2\t3\n4\n",  # as many numbers as two lines have
        b"1\n2\t3\t4\n",
        b"1\t-\n",
        b"1\t99999999999999999999\n",
        b"-99999999999999999999\t1\n",
    ],
)
def test_what_is_no_index_is_refused_at_once(tmp_path, content):
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="not every line is 'key<TAB>offset'"):
            read(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"1 2\r\n-5\t \t70 \r\n", b" 1\t2\n-5\t70"])
def test_lines_of_other_writers_are_read(tmp_path, content):
    found = read(tmp_path, content)
    assert list(found.keys) == [1, -5] and found.offsets_N.tolist() == [2, 70]


def test_an_empty_index_lists_nothing(tmp_path):
    for content in (b"", b"\n \n"):
        found = read(tmp_path, content)
        assert len(found) == len(found.keys) == 0


@settings(deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(-5, 60), st.integers(1, 9)), min_size=1, max_size=9),
    most=st.sampled_from([1, 3, 64]),
    bounds=st.tuples(st.integers(-9, 70), st.integers(-9, 70)),
)
def test_keys_are_found_wherever_they_are(tmp_path_factory, runs, most, bounds):
    keys = [key for start, count in runs for key in range(start, start + count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_MOST_RUNS", most)
        patch.setattr(index, "_PIECE_BYTES", 40)
        text = "".join(f"{key}\t{4 * place}\n" for place, key in enumerate(keys))
        found = read(tmp_path_factory.mktemp("idx"), text.encode())
    assert list(found.keys) == keys == [found[place] for place in range(len(found))]
    for key in range(-6, 70):
        assert found.find(key) == (keys.index(key) if key in keys else None)
    if len(set(keys)) == len(keys):
        part = found.between(*bounds)
        wanted = sorted(key for key in keys if bounds[0] <= key < bounds[1])
        assert list(part.keys) == wanted
        assert part.offsets_N.tolist() == [4 * keys.index(key) for key in wanted]
