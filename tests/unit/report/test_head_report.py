"""The table of head rows and their comparison."""

import pytest
from rich.console import Console

from megaclass.report.head import comparisons, head_tables, short
from megaclass.results.rows import Row, timed

CASE = {"num_classes": 80_000_000, "embedding_dim": 512, "batch_size": 1024, "sample_rate": 0.1,
        "precision": "bf16", "storage": "int8_rowwise", "world_size": 1, "simulate_ranks": 8,
        "placement": "device"}  # fmt: skip
WORK = {"flops_per_second": 3e11, "limit_flops_per_second": 4e11, "bytes_per_second": 1e10,
        "limit_bytes_per_second": 1e11}  # fmt: skip
OURS = Row(implementation="megaclass", benchmark="head", case=CASE, status="ok", group="1", work=WORK,
           memory_mb={"allocated": 500.0, "process": 9000.0}, **timed([10.0, 11.0, 12.0], 1024))  # fmt: skip
TUNED = CASE | {"malloc": "tuned", "precision": "fp32", "storage": "fp32"}
PEER = Row(implementation="arcface_torch", benchmark="head", case=TUNED,
           status="ok", group="1", work=WORK, memory_mb={"allocated": 1000.0},
           **timed([30.0, 33.0, 36.0], 1024))  # fmt: skip
OOM = Row(implementation="arcface_torch", benchmark="head", case=CASE, status="oom", reason="full")


def test_the_table_fits_a_terminal(capsys):
    Console(width=80).print(head_tables([OURS, PEER, OOM]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "80M x 512, batch 1024, rate 0.1, 1 of 8 ranks"
    assert lines[2].split() == [
        "megaclass",
        "bf16/int8_rowwise",
        "11",
        "93,091",
        "500",
        "300",
        "75%",
        "10",
        "10%",
    ]
    assert lines[4].split()[-1] == "oom" and len(lines) == 5


def test_ours_is_compared_with_what_ran_beside_it():
    (line,) = comparisons([OURS, PEER, OOM])
    assert line == (
        "megaclass bf16/int8_rowwise: 3.00 (3.00 to 3.00) times as fast as "
        "arcface_torch fp32/fp32 tuned, with 0.50 of its memory"
    )
    assert comparisons([OURS, OOM]) == [] == comparisons([PEER])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7"),
        (1000, "1K"),
        (1500, "1.5K"),
        (123_457, "123.457K"),
        (123_456_789, "123.456789M"),
        (10**7, "10M"),
        (10**12, "1000B"),
    ],
)
def test_counts_are_short_where_that_loses_nothing(count, text):
    assert short(count) == text
