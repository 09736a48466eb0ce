"""Slower, faster, equal or unclear: over recorded runs, and what holds for any."""

import dataclasses
import itertools
import math
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.results.rows import read_rows
from megaclass.results.stats import ratio_of_medians
from megaclass.results.verdict import EQUAL, FASTER, FEWEST_STEPS, SLOWER, UNCLEAR, Steps, judge

FIXTURES = Path(__file__).parents[2] / "fixtures" / "compare"
MIRRORED = {SLOWER: FASTER, FASTER: SLOWER, EQUAL: EQUAL, UNCLEAR: UNCLEAR}


def recorded(pattern):
    """The runs of these files: see the README beside them."""
    rows = [read_rows(path)[-1] for path in sorted(FIXTURES.glob(f"{pattern}.jsonl"))]
    return [Steps(row.samples_ms, row.data_ms, row.cpu_wait_percent) for row in rows]


PLAIN, SLOW = recorded("plain-*"), recorded("slow-*")


def quiet(step_ms=10.0, steps=80, seed=0):
    """A machine of one's own: steps within half a percent, each for itself."""
    draw = random.Random(seed)
    return [step_ms * (1 + draw.uniform(0, 0.005)) for _ in range(steps)]


def with_neighbour(times, episodes, factor):
    """Others compute for a while: all steps of these ranges take longer."""
    return [time * (factor if any(i in e for e in episodes) else 1) for i, time in enumerate(times)]


# -- recorded runs --------------------------------------------------------------------------------------


def test_two_recorded_runs_of_one_program_are_equal():
    words = [judge(a, b).word for a, b in itertools.combinations(PLAIN, 2)]
    assert len(words) == 28 and {*words} <= {EQUAL, UNCLEAR}
    assert words.count(EQUAL) >= 0.9 * len(words)


@pytest.mark.parametrize("slow", SLOW)
def test_a_recorded_sleep_in_the_loader_is_slower_than_every_run_without(slow):
    for plain in PLAIN:
        verdict = judge(plain, slow)
        assert verdict.word == SLOWER and "waited for data" in verdict.reason
        assert judge(slow, plain).word == FASTER


def test_a_bootstrap_of_single_steps_would_find_most_recorded_pairs_different():
    pairs = [*itertools.combinations(PLAIN, 2)]
    ratios = [ratio_of_medians(b.samples_ms, a.samples_ms, resamples=200) for a, b in pairs]
    assert sum(not r.low <= 1 <= r.high for r in ratios) > len(pairs) / 2


def test_an_overloaded_machine_says_nothing_about_computing():
    both = *recorded("small-calm"), *recorded("small-overloaded")
    verdict = judge(*both)
    assert (
        verdict.ratio.low > 1.5 and verdict.word == UNCLEAR and "other programs were busy" in verdict.reason
    )
    # The steps alone do not tell it from a program that became slower.
    assert judge(*(dataclasses.replace(run, cpu_wait_percent=0.0) for run in both)).word == SLOWER


@pytest.mark.parametrize("busy", [(True, False), (False, True), (True, True)])
def test_a_busy_machine_starves_a_loader_too_so_its_waiting_proves_nothing(busy):
    starved = Steps([time + 2.5 for time in quiet(seed=1)], [2.6] * 80)
    calm = Steps(quiet(), [0.1] * 80)
    assert judge(calm, starved).word == SLOWER
    waited = [70.0 if b else 0.0 for b in busy]
    before, after = (
        dataclasses.replace(run, cpu_wait_percent=w) for run, w in zip((calm, starved), waited, strict=True)
    )
    for verdict in (judge(before, after), judge(after, before)):
        assert verdict.word == UNCLEAR and verdict.reason == "other programs were busy, measure again"


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_parts_of_recorded_runs_of_one_program_are_not_slower(steps):
    parts = [
        Steps(run.samples_ms[i : i + steps], run.data_ms[i : i + steps])
        for run in PLAIN
        for i in range(0, 80, 40)
    ]
    words = {
        judge(a, b).word for (i, a), (j, b) in itertools.permutations(enumerate(parts), 2) if i // 2 != j // 2
    }
    assert words <= {EQUAL, UNCLEAR}


# -- what decides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "threshold", "word"),
    [
        (1.03, 0.05, EQUAL),
        (1.03, 0.01, SLOWER),
        (1.08, 0.05, SLOWER),
        (0.92, 0.05, FASTER),
        (1.0, 0.0, EQUAL),
    ],
)
def test_a_few_percent_show_on_a_quiet_machine(factor, threshold, word):
    assert judge(Steps(quiet()), Steps(quiet(10 * factor, seed=1)), threshold).word == word


def test_a_neighbour_in_most_of_a_run_is_no_slowdown():
    disturbed = with_neighbour(quiet(seed=1), [range(6, 40), range(46, 80)], 1.4)
    verdict = judge(Steps(quiet()), Steps(disturbed))
    assert verdict.ratio.value > 1.35 and verdict.word == UNCLEAR
    assert judge(Steps(quiet()), Steps([1.4 * time for time in quiet(seed=1)])).word == SLOWER


def test_uneven_steps_hide_what_even_ones_show():
    def run(spread, seed):
        draw = random.Random(seed)
        return Steps([10 * draw.uniform(1, 1 + spread) for _ in range(200)])

    for spread, word in ((0.02, SLOWER), (0.3, EQUAL)):
        later = Steps([1.1 * time for time in run(spread, 1).samples_ms])
        assert judge(run(spread, 0), later).word == word
    assert judge(run(0.3, 0), later).reason.endswith("would show")


def test_a_loader_that_waits_because_the_rest_became_faster_is_no_loss():
    before = Steps(quiet(), [0.05] * 80)
    after = Steps(quiet(seed=1), [2.0] * 80)  # as long as before, two of ten ms of it waiting
    verdict = judge(before, after)
    assert verdict.word == UNCLEAR and "whole steps do not show it" in verdict.reason


def test_waiting_shows_through_disturbed_computing():
    draw = random.Random(0)
    uneven = [
        with_neighbour(quiet(seed=s), [range(i, i + 9) for i in draw.sample(range(70), 3)], 1.5) for s in "ab"
    ]
    # So uneven is the computing that whole steps alone do not tell.
    uneven = [[time * draw.uniform(1, 1.3) for time in run] for run in uneven]
    sleeping = [time + 2 for time in uneven[1]]
    assert judge(Steps(uneven[0]), Steps(sleeping)).word != SLOWER
    assert judge(Steps(uneven[0], [0.1] * 80), Steps(sleeping, [2.1] * 80)).word == SLOWER


def test_what_more_steps_could_tell():
    # Whether a neighbour was there for more or for less than half of the time is not known yet.
    often = [range(i, i + 8) for i in range(0, 80, 20)]
    disturbed = Steps(with_neighbour(quiet(seed=1), often, 3.0))
    verdict = judge(Steps(quiet()), disturbed)
    assert verdict.word == UNCLEAR and re.search(
        r"would show; about [1-9]0+ more steps may tell", verdict.reason
    )
    draw = random.Random(2)
    wild = [Steps([10 * math.exp(abs(draw.gauss(0, 0.5))) for _ in range(100)]) for _ in range(2)]
    verdict = judge(*wild)
    assert verdict.word == UNCLEAR and "would show; more steps will hardly tell" in verdict.reason


def test_too_few_steps_say_nothing():
    few = Steps(quiet(steps=FEWEST_STEPS - 1))
    verdict = judge(few, Steps([2 * time for time in few.samples_ms]))
    assert verdict.word == UNCLEAR and f"{FEWEST_STEPS - 1} steps: measure 80 or more" in verdict.reason
    assert judge(Steps([]), few).ratio is None and judge(few, Steps([])).word == UNCLEAR


def test_ten_even_steps_show_a_large_slowdown_and_not_a_small_one():
    def run(factor, seed):
        draw = random.Random(seed)
        return Steps([10 * factor * draw.uniform(1, 1.06) for _ in range(10)])

    assert judge(run(1, 0), run(3, 1)).word == SLOWER
    assert judge(run(1, 0), run(1.2, 1)).word == EQUAL
    verdict = judge(run(1, 0), run(1.4, 1))
    assert verdict.word == UNCLEAR and verdict.reason.endswith("measure 80 steps or more")


@pytest.mark.parametrize("factor", [1.2, 2.0, 3.0])
def test_a_few_quick_steps_do_not_blind_the_verdict(factor):
    def run(factor, seed):
        return [0.6 * time if i % 20 == 3 else time for i, time in enumerate(quiet(10 * factor, 100, seed))]

    assert judge(Steps(run(1, 0)), Steps(run(factor, 1))).word == SLOWER
    assert judge(Steps(quiet()), Steps(run(2, 1))).word == SLOWER


@pytest.mark.parametrize(("part", "word"), [(60, UNCLEAR), (80, UNCLEAR), (97, SLOWER)])
def test_nearly_all_steps_have_to_be_slower(part, word):
    later = [time * (2 if 37 * i % 100 < part else 1) for i, time in enumerate(quiet(steps=100, seed=1))]
    assert judge(Steps(quiet(steps=100)), Steps(later)).word == word


def test_a_step_takes_time():
    with pytest.raises(ValueError, match="above 0"):
        judge(Steps([0.0] * 20), Steps(quiet()))


# -- what holds for any runs ----------------------------------------------------------------------------


@st.composite
def runs(draw, spread=2.0):
    """Steps that drift: each is a little off the one before; a part of each may be waiting."""
    count = draw(st.integers(FEWEST_STEPS, 60))
    times = draw(st.lists(st.floats(10.0, 10.0 * spread), min_size=count, max_size=count))
    smooth = [
        (a + b + c) / 3 for a, b, c in zip(times, times[1:] + times[:1], times[2:] + times[:2], strict=True)
    ]
    share = draw(st.floats(0.0, 0.9))
    waits = (
        [share * time * draw(st.sampled_from((0.5, 1.0))) for time in smooth] if draw(st.booleans()) else []
    )
    return Steps(smooth, waits, draw(st.sampled_from((None, 0.0, 50.0))))


def scaled(run, factor):
    return Steps(
        [factor * t for t in run.samples_ms], [factor * t for t in run.data_ms], run.cpu_wait_percent
    )


some = settings(max_examples=30, deadline=None)


@some
@given(runs(), runs(), st.floats(0.01, 100.0))
def test_the_unit_of_time_does_not_matter(a, b, factor):
    first, second = judge(a, b), judge(scaled(a, factor), scaled(b, factor))
    assert first.word == second.word
    assert dataclasses.astuple(first.ratio) == pytest.approx(dataclasses.astuple(second.ratio))


@some
@given(runs(), runs(), st.floats(0.5, 2.0))
def test_exchanged_runs_mirror_the_verdict(a, b, factor):
    there, back = judge(a, scaled(b, factor)), judge(scaled(b, factor), a)
    assert back.word == MIRRORED[there.word]
    assert back.ratio.value == pytest.approx(1 / there.ratio.value)
    assert (back.ratio.low, back.ratio.high) == pytest.approx((1 / there.ratio.high, 1 / there.ratio.low))


@some
@given(runs(spread=1.1))
def test_a_run_equals_itself(run):
    verdict = judge(run, run)
    assert verdict.ratio.value == 1
    assert verdict.word == (UNCLEAR if run.busy else EQUAL) or len(run.samples_ms) < 20
    assert verdict.word in (EQUAL, UNCLEAR)


@some
@given(runs(spread=3.0), st.floats(1.0, 4.0))
def test_a_longer_run_is_never_faster(run, factor):
    assert judge(run, scaled(run, factor)).word != FASTER
