"""The text of an index: read as it stands."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.data.records.recordfile import read_index
from megaclass.errors import UserError

numbers = st.one_of(st.integers(0, 99), st.integers(-(2**62), 2**62))


def read(directory, content: bytes):
    path = directory / "train.idx"
    path.write_bytes(content)
    return read_index(path)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(numbers, numbers), max_size=30), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_lines_are_read_as_they_stand(tmp_path_factory, lines, end):
    text = "".join(f"{key}\t{offset}{end}" for key, offset in lines)
    found = read(tmp_path_factory.mktemp("idx"), text.encode())
    assert found.keys_N.dtype == found.offsets_N.dtype == np.int64
    assert list(zip(found.keys_N.tolist(), found.offsets_N.tolist(), strict=True)) == lines


@pytest.mark.parametrize(
    "content",
    [
        b"1" * 3_000_000,
        b"\0" * 3_000_000,
        b"1\t2\n" + b"x" * 9000,
        b"1\t2 3\n",
        b"1\t2\t3\n4\n",  # as many numbers as two lines have
        b"1\t-\n",
        b"1\t2.5\n",
        b"1\t2\n#\n",
        b"1\t99999999999999999999\n",
        b"-99999999999999999999\t1\n",
        b"\xff\t1\n",
    ],
)
def test_what_is_no_index_is_refused_at_once(tmp_path, content):
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="not every line is 'key<TAB>offset'"):
            read(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-5, 60), max_size=40), st.tuples(st.integers(-9, 70), st.integers(-9, 70)))
def test_keys_are_found_wherever_they_are_and_told_where_they_come_twice(tmp_path_factory, keys, bounds):
    text = "".join(f"{key}\t{4 * place}\n" for place, key in enumerate(keys))
    found = read(tmp_path_factory.mktemp("idx"), text.encode())
    for key in range(-6, 62):
        assert found.find(key) == (keys.index(key) if key in keys else None)
    assert found.double_keys().tolist() == sorted({key for key in keys if keys.count(key) > 1})
    part = found.between(*bounds)
    assert part.keys_N.tolist() == sorted(key for key in keys if bounds[0] <= key < bounds[1])
    assert [keys[offset // 4] for offset in part.offsets_N.tolist()] == part.keys_N.tolist()
