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
        keys, offsets = read(tmp_path_factory.mktemp("idx"), text.encode())
    assert list(keys) == [key for key, _ in lines]
    assert offsets.dtype == np.int64 and offsets.tolist() == [offset for _, offset in lines]
    assert isinstance(keys, range) or counted is None


@given(line=st.binary(min_size=4, max_size=12), sound=st.integers(1, 5))
def test_no_byte_but_a_digit_is_one(tmp_path_factory, line, sound):
    """A line of any bytes among sound ones of its length: refused, or read as Python reads it."""
    line = line.replace(b"\n", b"x") + b"\n"
    beside = b"1".rjust(len(line) // 2, b"1") + b"\t"
    beside += b"2" * (len(line) - 1 - len(beside)) + b"\n"
    content = beside * sound + line + beside
    try:
        keys, offsets = read(tmp_path_factory.mktemp("idx"), content)
    except UserError:
        return
    fields = content.split()
    assert list(keys) == [int(key) for key in fields[0::2]]
    assert offsets.tolist() == [int(offset) for offset in fields[1::2]]


@pytest.mark.parametrize(
    "content", [b"1" * 3_000_000, b"\0" * 3_000_000, b"1\t2\n" + b"x" * 9000, b"1\t2 3\n"]
)
def test_what_is_no_index_is_refused_at_once(tmp_path, content):
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="not every line is 'key<TAB>offset'"):
            read(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def test_an_empty_index_lists_nothing(tmp_path):
    for content in (b"", b"\n \n"):
        keys, offsets = read(tmp_path, content)
        assert len(keys) == len(offsets) == 0
