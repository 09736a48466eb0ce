"""Percentiles and ratios of measured times."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.results.stats import interval, percentile, ratio_of_medians, summary

times = st.floats(min_value=1e-3, max_value=1e6)
samples = st.lists(times, min_size=1, max_size=30)


@given(samples)
def test_the_summary_is_in_order(values):
    found = summary(values)
    assert found["p50"] == pytest.approx(statistics.median(values))
    order = [found[name] for name in ("p50", "p90", "p95", "p99", "p100")]
    assert order == sorted(order) and order[-1] == max(values)
    assert min(values) <= found["mean"] * (1 + 1e-12) and found["mean"] <= max(values) * (1 + 1e-12)


@settings(max_examples=30, deadline=None)
@given(samples, st.floats(min_value=0.1, max_value=10), st.booleans())
def test_a_ratio_lies_in_its_interval(values, factor, paired):
    ratio = ratio_of_medians([factor * v for v in values], values, paired=paired, resamples=50)
    assert ratio.value == pytest.approx(factor)
    # The bootstrap's median need not be the sample's where the samples are few, so the bounds are those of all.
    spread = max(values) / min(values)
    slack = 1 + 1e-9
    assert factor / spread / slack <= ratio.low <= ratio.high <= factor * spread * slack


def test_pairing_leaves_out_what_slows_both():
    disturbed = [10.0, 11, 40, 10, 12, 35, 10, 11, 38, 10]
    twice = [2 * v for v in disturbed]
    paired = ratio_of_medians(twice, disturbed, paired=True)
    assert (paired.low, paired.value, paired.high) == (2, 2, 2)
    alone = ratio_of_medians(twice, disturbed)
    assert alone.low < 2 < alone.high


def test_a_ratio_is_the_same_every_time():
    six, others = [3, 4, 5, 3, 4, 5.0], [1, 2, 3, 1, 2, 3.0]
    assert ratio_of_medians(six, others) == ratio_of_medians(six, others)
    assert "to" in str(ratio_of_medians(six, others))
    assert str(ratio_of_medians([3, 4, 5.0], [1, 2, 3.0])) == "2.00"  # too few for an interval


def test_an_interval_lies_about_its_percentile_or_the_mean():
    samples = [10.0, 12, 11, 14, 13, 19, 15, 12, 11, 13]
    for percent, value in ((50, percentile(samples, 50)), (90, percentile(samples, 90)), (None, 13.0)):
        low, high = interval(samples, percent)
        assert min(samples) <= low < value < high <= max(samples)
