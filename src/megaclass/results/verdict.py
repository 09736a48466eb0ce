"""Whether one run is slower than another of the same work: decided on the time of every step.

Steps are not independent: a neighbour slows dozens of them on end, and whole runs of one program differ by more than
either shows from within (medians of recorded runs on a shared machine: up to 15% apart). A t-test, or a bootstrap of
single steps, finds most of such pairs different. So:

1. *Slower* is said only where nearly all steps are: the quick steps (10% quantile) of one run took longer than the slow
   steps (90%) of the other by more than the threshold. What spreads the steps of a run shifts whole runs too, by about
   as much; on a quiet machine that is next to nothing, and a few percent show.
2. That ratio has to lie beyond the threshold in 95 of 100 resamples (scipy.stats.bootstrap) of *stretches* of steps, an
   eighth of a run each: what changes slowly is in its interval (moving blocks: Künsch, Ann. Statist. 17, 1989).
3. *Waiting for data is looked at alone*, where it was measured, as if both runs had computed equally fast: a loader
   that became slower shows through disturbed computing. Whole steps must have become longer all the same.
4. *Where other programs held the processors*, nothing is said but ``unclear``.

What it cannot see: a slowdown of some steps only (look at p95). What it may wrongly call slower: runs whose steps are
even within each but differ for a reason outside the program, such as the clocks of a GPU that another job heated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from megaclass.results.rows import Row
from megaclass.results.stats import Ratio, percentile, resampled

SLOWER, FASTER, EQUAL, UNCLEAR = "slower", "faster", "equal", "unclear"

FEWEST_STEPS = 8
ENOUGH_STEPS = 80  # of the recorded runs; a shorter one may lie in one disturbance altogether
# Of the time in which some task waited for a processor: at 48 a run was seen to take 1.5 times as long.
BUSY_PERCENT = 10.0
BLINDEST = 0.5  # runs between which such a slowdown would not show are not called equal

_STRETCHES = 8
_QUICK, _SLOW = 10, 90


@dataclass(frozen=True)
class Verdict:
    word: str  # ``slower``, ``faster``, ``equal`` or ``unclear``
    ratio: Ratio | None  # of the median steps, later over earlier; None without steps
    reason: str = ""  # for a person


def judge(earlier: Row, later: Row, threshold: float = 0.05) -> Verdict:
    """Whether the steps of ``later`` took longer than those of ``earlier`` by more than the part ``threshold`` (0.05 is
    5%). Exchanged, they give the mirrored verdict."""
    before, after = earlier.samples_ms, later.samples_ms
    if not before or not after:
        return Verdict(UNCLEAR, None, "no timed steps")
    # The quicker first: exchanged runs mirror the verdict.
    if (median(after), after) < (median(before), before):
        found = judge(later, earlier, threshold)
        ratio = found.ratio and Ratio(1 / found.ratio.value, 1 / found.ratio.high, 1 / found.ratio.low)
        return Verdict(FASTER if found.word == SLOWER else found.word, ratio, found.reason)
    fewest, more = min(len(before), len(after)), f"; measure {ENOUGH_STEPS} steps or more"
    if fewest < FEWEST_STEPS:
        value = median(after) / median(before)
        return Verdict(UNCLEAR, Ratio(value, value, value), f"{fewest} steps are too few{more}")
    ratio = _ratio(after, before, 50, 50)
    if max(earlier.cpu_wait_percent or 0.0, later.cpu_wait_percent or 0.0) > BUSY_PERCENT:
        return Verdict(UNCLEAR, ratio, "other programs were busy, measure again")
    if fewest < ENOUGH_STEPS:
        threshold = max(threshold, 2 / fewest)  # of recorded runs, short stretches are apart by half of that
    if _ratio(after, before, _QUICK, _SLOW).low > 1 + threshold:
        return Verdict(SLOWER, ratio)
    if _waits_apart(earlier, later, threshold):
        waits = f"waited for data {median(earlier.data_ms):.3g} and {median(later.data_ms):.3g} ms a step"
        if ratio.value > 1 + threshold:
            return Verdict(SLOWER, ratio, waits)
        return Verdict(UNCLEAR, ratio, f"{waits}, and whole steps do not show it")
    if ratio.high < 1 + threshold:
        return Verdict(EQUAL, ratio)
    slow = [percentile(run, _SLOW) / percentile(run, 50) for run in (before, after)]
    quick = [percentile(run, 50) / percentile(run, _QUICK) for run in (before, after)]
    shows = (1 + threshold) * max(slow[0] * quick[1], slow[1] * quick[0]) - 1
    equal = shows <= BLINDEST and ratio.value < 1 + max(threshold, shows / 2)
    reason = f"only a change of {shows:.0%} would show" + (more if fewest < ENOUGH_STEPS else "")
    return Verdict(EQUAL if equal else UNCLEAR, ratio, reason)


def _waits_apart(earlier: Row, later: Row, threshold: float) -> bool:
    """Whether one of them waited longer for its data, as if both had computed for as long; no where it is not known."""
    if not all(len(row.data_ms) == len(row.samples_ms) for row in (earlier, later)):
        return False
    one, two = (
        max(0.0, median(t - w for t, w in zip(row.samples_ms, row.data_ms, strict=True))) for row in (earlier, later)
    )
    computing = (one * two) ** 0.5
    before, after = ([computing + wait for wait in row.data_ms] for row in (earlier, later))
    ratios = (_ratio(a, b, _QUICK, _SLOW) for a, b in ((after, before), (before, after)) if computing)
    return any(ratio.low > 1 + threshold for ratio in ratios)


def _ratio(over: Sequence[float], under: Sequence[float], percent_over: float, percent_under: float) -> Ratio:
    """Of a quantile of one run to one of another, with the interval of resampled stretches."""
    import numpy as np

    stretches = [np.array_split(np.asarray(run), _STRETCHES) for run in (over, under)]
    blocks = [np.array([part[: min(map(len, parts))] for part in parts]) for parts in stretches]

    def quantile(one: int, places: Any, percent: float) -> Any:
        return np.percentile(blocks[one][places].reshape(*places.shape[:-1], -1), percent, axis=-1)

    def statistic(a: Any, b: Any, axis: int = -1) -> Any:
        return quantile(0, a, percent_over) / quantile(1, b, percent_under)

    places = np.arange(_STRETCHES)
    value = percentile(over, percent_over) / percentile(under, percent_under)
    low, high = resampled((places, places), statistic, resamples=500, batch=max(1, 500_000 // len(over)))
    return Ratio(value, min(low, value), max(high, value))
