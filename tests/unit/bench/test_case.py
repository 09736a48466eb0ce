"""What a benchmark declares is what the command line has of it. (The benchmark of CONTRIBUTING is run by test_docs.)"""

from argparse import ArgumentTypeError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench_words import cases
from megaclass.bench import BENCHMARKS
from megaclass.bench.flags import counts
from megaclass.cli.bench import options_of


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
        options_of(benchmark, ["recipe"] if benchmark.name == "stability" else [])  # argparse refuses a flag twice
        assert benchmark.leading, benchmark.name
