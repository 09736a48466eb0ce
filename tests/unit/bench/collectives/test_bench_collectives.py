"""`megaclass bench collectives` as a user meets it."""

from pathlib import Path

import pytest

from megaclass.cli import main
from megaclass.results.rows import read_rows

SMALL = ["--steps", "2", "--warmup", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def bench(*words):
    return main(["bench", "collectives", *SMALL, *map(str, words)])


@pytest.mark.dist
def test_two_processes_exchange_and_a_row_says_how_fast(tmp_path, capsys):
    words = [
        "--op",
        "all_reduce,all_gather",
        "--size",
        "1000,1",
        "--dtype",
        "bfloat16",
        "--output",
        "rows.jsonl",
    ]
    assert bench(*words) == 0
    reduced, no_sum, gathered, nothing = read_rows("rows.jsonl")
    for row in (reduced, gathered):
        assert row.status == "ok", row.reason
        assert (
            row.case["backend"] == "gloo" and row.case["world_size"] == 2 and row.case["size_bytes"] == 1000
        )
        assert len(row.samples_ms) == 2 and row.case["calls"] > 1 and row.samples_per_second is None
        algorithm = row.work["algorithm_bytes_per_second"]
        assert row.work["bytes"] == 1000
        assert algorithm == pytest.approx(1000 / row.step_ms["p50"] * 1000)
    assert reduced.work["bus_bytes_per_second"] == pytest.approx(reduced.work["algorithm_bytes_per_second"])
    assert gathered.work["bus_bytes_per_second"] == pytest.approx(
        gathered.work["algorithm_bytes_per_second"] / 2
    )
    assert no_sum.status == nothing.status == "skipped" and "2 ranks" in no_sum.reason
    said = capsys.readouterr().out
    assert "all_gather, bfloat16, 2 ranks, gloo" in said and "bus GB/s" in said and "samples/s" not in said
    assert bench(*words) == 0
    assert "4 of 4 cases are in rows.jsonl already" in capsys.readouterr().out
    assert len(read_rows("rows.jsonl")) == 4


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--op", "all_reduced"], "did you mean 'all_reduce'"),
        (["--size", "big"], "--size: 'big'"),
        (["--size", "0"], "--size: 0"),
        (["--dtype", "float64"], "float16"),
        (["--world-size", "1"], "--world-size: 1"),
        (["-n", "65"], "--world-size: 65"),
        (["--steps", "0"], "--steps"),
        (["--timeout", "-1"], "--timeout"),
        (["--device", "tpu"], "--device: 'tpu'"),
        (["--threads", "-1"], "--threads"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_touched(words, part, capfd):
    assert bench(*words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("megaclass: error: ") and part in lines[0]
    assert not [*Path().iterdir()]
