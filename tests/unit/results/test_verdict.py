"""Slower, faster, equal or unclear: over recorded runs, and what holds for any."""

import dataclasses
import itertools
import math
import random
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megaclass.results.rows import Row, read_rows
from megaclass.results.stats import ratio_of_medians
from megaclass.results.verdict import EQUAL, FASTER, FEWEST_STEPS, SLOWER, UNCLEAR, judge

FIXTURES = Path(__file__).parents[2] / "fixtures" / "compare"
MIRRORED = {SLOWER: FASTER, FASTER: SLOWER, EQUAL: EQUAL, UNCLEAR: UNCLEAR}


def run(samples_ms, data_ms=(), wait=None):
    row = {"implementation": "a", "benchmark": "b", "case": {}, "status": "ok", "cpu_wait_percent": wait}
    return Row(samples_ms=list(samples_ms), data_ms=list(data_ms), **row)


def recorded(pattern):
    """The runs of these files: see the README beside them."""
    return [read_rows(path)[-1] for path in sorted(FIXTURES.glob(f"{pattern}.jsonl"))]


PLAIN, SLOW = recorded("plain-*"), recorded("slow-*")


def quiet(step_ms=10.0, steps=80, seed=0, noise=0.005):
    """A machine of one's own: steps within half a percent, each for itself."""
    draw = random.Random(seed)
    return [step_ms * (1 + draw.uniform(0, noise)) for _ in range(steps)]


def slowed(times, chosen, factor):
    """All steps of these numbers take longer: others compute for a while."""
    return [time * (factor if i in chosen else 1) for i, time in enumerate(times)]


# -- recorded runs --------------------------------------------------------------------------------------


def test_recorded_runs_of_one_program_are_never_slower_and_mostly_equal():
    pairs = [*itertools.combinations(PLAIN, 2)]
    words = [judge(a, b).word for a, b in pairs]
    assert len(words) == 28 and {*words} <= {EQUAL, UNCLEAR} and words.count(EQUAL) >= 20
    # A bootstrap of single steps finds most of them different.
    ratios = [ratio_of_medians(b.samples_ms, a.samples_ms, resamples=200) for a, b in pairs]
    assert sum(not r.low <= 1 <= r.high for r in ratios) > len(pairs) / 2


@pytest.mark.parametrize("slow", SLOW)
def test_a_recorded_sleep_in_the_loader_is_slower_than_every_run_without(slow):
    for plain in PLAIN:
        assert (judge(plain, slow).word, judge(slow, plain).word) == (SLOWER, FASTER)


def test_waiting_for_data_tells_where_whole_steps_do_not():
    verdict = judge(PLAIN[0], SLOW[1])
    assert "waited for data" in verdict.reason and verdict.word == SLOWER
    assert judge(*(dataclasses.replace(one, data_ms=[]) for one in (PLAIN[0], SLOW[1]))).word != SLOWER


def test_an_overloaded_machine_says_nothing_about_computing():
    both = *recorded("small-calm"), *recorded("small-overloaded")
    verdict = judge(*both)
    assert verdict.ratio.low > 1.5 and (verdict.word, "busy" in verdict.reason) == (UNCLEAR, True)
    # The steps alone do not tell it from a program that became slower.
    assert judge(*(dataclasses.replace(one, cpu_wait_percent=0.0) for one in both)).word == SLOWER


# -- what decides ---------------------------------------------------------------------------------------

EVEN = quiet(steps=100, seed=1)
CASES = {
    "3% within 5%": (quiet(), quiet(10.3, seed=1), 0.05, EQUAL),
    "3% beyond 1%": (quiet(), quiet(10.3, seed=1), 0.01, SLOWER),
    "8% beyond 5%": (quiet(), quiet(10.8, seed=1), 0.05, SLOWER),
    "8% less": (quiet(), quiet(9.2, seed=1), 0.05, FASTER),
    "no difference": (quiet(), quiet(seed=1), 0.05, EQUAL),
    "a neighbour in most of the run": (quiet(), slowed(quiet(seed=1), range(12, 80), 1.4), 0.05, UNCLEAR),
    "as long throughout": (quiet(), slowed(quiet(seed=1), range(80), 1.4), 0.05, SLOWER),
    "even steps": (quiet(noise=0.02), quiet(11, seed=1, noise=0.02), 0.05, SLOWER),
    "uneven steps": (quiet(noise=0.3), quiet(11, seed=1, noise=0.3), 0.05, EQUAL),
    "60% of the steps": (EVEN, slowed(EVEN, range(60), 2), 0.05, UNCLEAR),
    "97% of the steps": (EVEN, slowed(EVEN, [i for i in range(100) if i % 33], 2), 0.05, SLOWER),
    "a few quick steps": (slowed(EVEN, range(3, 100, 20), 0.6), slowed(EVEN, range(100), 1.2), 0.05, SLOWER),
    "ten steps, much": (quiet(steps=10, noise=0.06), quiet(30, 10, 1, 0.06), 0.05, SLOWER),
    "ten steps, little": (quiet(steps=10, noise=0.06), quiet(11, 10, 1, 0.06), 0.05, EQUAL),
    "too few": (quiet(steps=FEWEST_STEPS - 1), quiet(20, FEWEST_STEPS - 1), 0.05, UNCLEAR),
    "no steps": ([], quiet(), 0.05, UNCLEAR),
    "wild steps": (*([10 * math.exp(i * 37 % 100 / 50) for i in range(s, s + 100)] for s in (0, 7)), 0.05, UNCLEAR),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_decides(name):
    before, after, threshold, word = CASES[name]
    assert judge(run(before), run(after), threshold).word == word


def test_a_loader_that_waits_because_the_rest_became_faster_is_no_loss():
    # As long as before, two of ten ms of it waiting.
    verdict = judge(run(quiet(), [0.05] * 80), run(quiet(seed=1), [2.0] * 80))
    assert verdict.word == UNCLEAR and "whole steps do not show it" in verdict.reason


@pytest.mark.parametrize("busy", [(70.0, 0.0), (0.0, 70.0)])
def test_a_busy_machine_starves_a_loader_too_so_its_waiting_proves_nothing(busy):
    calm, starved = run(quiet(), [0.1] * 80), run([time + 2.5 for time in quiet(seed=1)], [2.6] * 80)
    assert judge(calm, starved).word == SLOWER
    runs = [dataclasses.replace(one, cpu_wait_percent=w) for one, w in zip((calm, starved), busy, strict=True)]
    assert "busy" in judge(*runs).reason and judge(*runs).word == UNCLEAR


# -- what holds for any runs ----------------------------------------------------------------------------


@st.composite
def runs(draw):
    times = st.lists(st.floats(10.0, 25.0), min_size=FEWEST_STEPS, max_size=60)
    samples = draw(times)
    waits = [draw(st.floats(0.0, 0.9)) * time for time in samples] if draw(st.booleans()) else []
    return run(samples, waits, draw(st.sampled_from((None, 0.0, 50.0))))


@settings(max_examples=30, deadline=None)
@given(runs(), runs(), st.floats(1.0, 4.0))
def test_exchanged_runs_mirror_the_verdict_and_a_longer_run_is_never_faster(a, b, factor):
    b = dataclasses.replace(b, samples_ms=[factor * t for t in b.samples_ms], data_ms=[factor * t for t in b.data_ms])
    assume(a.samples_ms != b.samples_ms)  # of two draws from one run neither goes first
    there, back = judge(a, b), judge(b, a)
    assert back.word == MIRRORED[there.word]
    assert (back.ratio.low, back.ratio.high) == pytest.approx((1 / there.ratio.high, 1 / there.ratio.low))
    longer = [factor * time for time in a.samples_ms]
    assert judge(a, dataclasses.replace(a, samples_ms=longer)).word != FASTER
    assert judge(a, a).word in (EQUAL, UNCLEAR)
