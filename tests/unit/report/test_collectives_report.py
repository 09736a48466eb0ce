"""The tables of collectives."""

import pytest
from rich.console import Console

from megaclass.report.collectives import collective_tables, size_text
from megaclass.results.rows import Row, timed

CASE = {
    "op": "all_gather",
    "size_bytes": 1 << 20,
    "dtype": "float16",
    "world_size": 8,
    "backend": "nccl",
    "calls": 7,
}
WORK = {"bytes": 1 << 20, "algorithm_bytes_per_second": 4e10, "bus_bytes_per_second": 3.5e10}
OK = Row(implementation="megaclass", benchmark="collectives", case=CASE, status="ok", work=WORK,
         **timed([0.02, 0.03, 0.04], 1) | {"samples_per_second": None})  # fmt: skip
FAILED = Row(implementation="megaclass", benchmark="collectives", case=CASE | {"size_bytes": 1536, "op": "broadcast"},
             status="failed", reason="killed")  # fmt: skip


def test_a_table_for_each_operation(capsys):
    Console(width=80).print(collective_tables([OK, FAILED]))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["all_gather,", "float16,", "8", "ranks,", "nccl"]
    assert lines[2][:2] == ["1M", "0.03"] and lines[2][-3:] == ["40", "35", "7"]
    assert lines[3][0] == "broadcast," and lines[5] == ["1.5K", "failed"]


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1"), (1000, "1000"), (4096, "4K"), (1 << 30, "1G"), ((1 << 20) + 1, "1048577")]
)
def test_sizes_are_told_exactly(size, text):
    assert size_text(size) == text
