"""The text index of a record set: its lines as they stand, and what is none refused at once."""

import tracemalloc

import pytest

from megaclass.data.records.recordfile import read_index
from megaclass.errors import UserError


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
