"""What a benchmark declares is what the command line, rows and pages have of it; a toy one is one file."""

from argparse import ArgumentTypeError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench_words import cases
from megaclass.bench import BENCHMARKS
from megaclass.bench.flags import counts
from megaclass.cli import main
from megaclass.cli.bench import options_of
from megaclass.results.rows import read_rows

TOY = '''
"""Sums, as a benchmark."""

from dataclasses import dataclass
from typing import ClassVar

from megaclass.bench.case import Benchmark, Case, Metric, parameter


@dataclass(frozen=True, kw_only=True)
class ToyCase(Case):
    benchmark: ClassVar[str] = "toy"
    world_size: ClassVar[int] = 1

    numbers: int = parameter(1000, "how many are summed", sweeps=True, low=1, title="numbers summed")
    device: str = parameter("auto", "auto or cpu")
    threads: int = parameter(0, "of the process", low=0)
    steps: int = parameter(3, "timed sums", low=1, effort=True)
    warmup: int = parameter(1, "sums before them", low=0, effort=True)

    @property
    def samples(self):
        return self.numbers


class Sums:
    def __init__(self, case, world, name, options):
        self.case = case

    def turn(self, index, tell):
        return {"ms": 1.0 + sum(range(self.case.numbers)) % 2 + index}

    def facts(self):
        return {"summed_by": "python"}


BENCHMARK = Benchmark(
    "toy", "Sums", "how fast numbers are summed", ToyCase,
    (Metric("samples_per_second", "Numbers/s", lambda row: row.samples_per_second, "higher", "p50"),),
    "samples_per_second", prepare=Sums,
)
'''


@pytest.mark.process
def test_a_benchmark_in_one_file_is_on_the_command_line_in_rows_and_on_the_page(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "toy_benchmark.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(BENCHMARKS, "toy", __import__("toy_benchmark").BENCHMARK)
    path = tmp_path / "rows.jsonl"
    assert main(["bench", "--help"]) == 0 and "how fast numbers are summed" in capsys.readouterr().out
    assert main(["bench", "toy", "--numbers", "0"]) == 2 and "--numbers: 0" in capsys.readouterr().err
    assert main(["bench", "toy", "--numbers", "1K,2K", "--threads", "1", "--output", str(path)]) == 0
    said = capsys.readouterr().out
    assert "case 2 of 2" in said and "numbers summed 2,000" in said and "Numbers/s" in said
    first, second = read_rows(path)
    assert [row.case["numbers"] for row in (first, second)] == [1000, 2000]
    assert first.status == "ok" and first.case["summed_by"] == "python" and first.samples_ms == [2, 3, 4]
    assert first.samples_per_second == pytest.approx(1000 / 0.003)

    assert main(["report", str(path), "--output", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert "Sums" in page and "Numbers/s" in page and "Numbers summed" in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128", [128]),
        ("100K,1M,0.1M", [100_000, 1_000_000]),
        ("1.5m, 2B", [1_500_000, 2_000_000_000]),
        ("1e3", [1000]),
    ],
)
def test_counts(text, expected):
    assert counts(text) == expected


@given(st.integers(min_value=0, max_value=10**18))
def test_digits_stay_exact(number):
    assert counts(f"{number},{number}K") == list(dict.fromkeys([number, number * 1000]))


@pytest.mark.parametrize("text", ["", "ten", "1.5", "1,,2", "K", "inf", "nan", "1T", "0.0001K"])
def test_what_is_no_count(text):
    with pytest.raises(ArgumentTypeError, match="not a whole number"):
        counts(text)


def test_every_combination_once_and_the_last_varies_fastest():
    found = cases("head", "--num-classes", "1,2,3", "--sample-rate", "1,0.5", "--steps", 7)
    assert [(case.num_classes, case.sample_rate) for case in found] == [
        (1, 1.0), (1, 0.5), (2, 1.0), (2, 0.5), (3, 1.0), (3, 0.5),
    ]  # fmt: skip
    assert {case.steps for case in found} == {7}


def test_flags_are_told_apart_and_pages_begin_with_a_metric():
    for benchmark in BENCHMARKS.values():
        options_of(
            benchmark, ["recipe"] if benchmark.name == "stability" else []
        )  # argparse refuses a flag twice
        assert benchmark.metric(benchmark.headline), benchmark.name


def test_the_help_of_a_command_is_short_and_has_all_on_demand(capsys):
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main(["bench", "train", word])
    short, whole = capsys.readouterr().out.split("usage:")[1:]
    assert len(short.splitlines()) < 100 and "--optim.lr" not in short and "--help-all" in short
    assert "--optim.lr" in whole and "--mode" in whole
