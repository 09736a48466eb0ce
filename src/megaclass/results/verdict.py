"""Whether one run is slower than another of the same work: decided on the time of every step.

Pure functions on lists of numbers, with the standard library alone.

Why not a t-test, or a bootstrap that draws single steps: both take steps for independent. They are not. A neighbour
slows dozens of steps on end, and whole runs of one program differ by more than any of them shows from within (where
its memory came to lie, which core, who else was there): on a shared machine of two cores their medians were up to
1.25 times one another, over 80 steps in each. A bootstrap of single steps finds 197 of the 253 pairs of such runs
different, and 113 by more than 5%. What is done instead:

1. *Stretches are drawn, not steps* (moving blocks: Künsch, Ann. Statist. 17, 1989), each an eighth of the run: so a
   quantile's uncertainty has in it what changes slowly.
2. *A run is trusted no further than its own steps agree.* What spreads the steps of a run shifts whole runs too, by
   about as much: the distance from the quickest steps to the median is taken as the standard deviation between runs.
   On a quiet machine that is next to nothing, so a few percent show there. The quickest are the 2% quantile, but at
   most twice as far as the 10% one: a few odd steps shall not blind the verdict. A run of fewer than 80 steps may lie
   in one disturbance altogether and look even, so it is trusted less: as many times less as it is shorter.
3. *Three quantiles have to say the same.* A slower program is slower in nearly every step, so in its quicker ones; a
   neighbour moves the median first, the lower quartile less, and the quickest tenth hardly. "Slower" is said only where
   the intervals of all three lie beyond the threshold.
4. *Waiting for data is looked at alone*, where it was measured. That the processor computes more slowly for a while
   hardly moves it, so a loader that has become slower is seen through disturbances of the same size: the steps are
   compared as if both runs had computed equally fast. The median of whole steps must lie beyond the threshold all the
   same: a loader that waits because the rest became faster is no loss.
5. *Where other programs held the processors in either run*, nothing is said but ``unclear``: they slow computing, and a
   loader that decodes beside the training starves too, so its waiting is no better witness.

What it cannot see, and calls ``unclear`` or ``equal``, with the change that would have shown where it can tell:
anything on a busy machine; fewer than 8 steps, and with fewer than 80 all but large changes; a slowdown of some steps,
up to about nine in ten of them (look at p95); a change within a run; what runs with uneven steps differ by anyway.

What it may wrongly call slower or faster: runs whose steps are even within each but differ between them for a reason
outside the program (clocks of a GPU that another job heated, another placement in memory); and on a system that does
not tell how long tasks waited for a processor (``cpu_wait_percent`` is None), runs beside other programs.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from megaclass.results.stats import Ratio, percentile

SLOWER, FASTER, EQUAL, UNCLEAR = "slower", "faster", "equal", "unclear"

FEWEST_STEPS = 8
ENOUGH_STEPS = 80  # of recorded runs; shorter ones are trusted less
# Of the time in which some task waited for a processor: at 48 a run was seen to take 1.5 times as long.
BUSY_PERCENT = 10.0
BLINDEST = 0.5  # runs between which such a slowdown would not show are not called equal

_PERCENTS = (10, 25, 50)
_STRETCHES = 8
_Z = 1.96  # standard deviations on either side that hold 95 of 100
_FURTHEST = 20  # times the steps: nobody measures for so long


@dataclass(frozen=True)
class Steps:
    """The timed steps of a run, in order. data_ms: the waiting for data in each, or nothing where it was not measured.
    cpu_wait_percent: as in :class:`megaclass.results.rows.Row`."""

    samples_ms: Sequence[float]
    data_ms: Sequence[float] = ()
    cpu_wait_percent: float | None = None

    @property
    def busy(self) -> bool:
        return (self.cpu_wait_percent or 0.0) > BUSY_PERCENT


@dataclass(frozen=True)
class Verdict:
    """word: ``slower``, ``faster``, ``equal`` or ``unclear``. ratio: of the median steps, later over earlier, with the
    interval in which two runs of one program would put it 95 times out of 100; None without steps. reason: for a
    person."""

    word: str
    ratio: Ratio | None
    reason: str = ""


def judge(earlier: Steps, later: Steps, threshold: float = 0.05) -> Verdict:
    """Whether ``later`` took longer than ``earlier`` by more than the part ``threshold`` (0.05 is 5%). Exchanged, they
    give the mirrored verdict."""
    if not earlier.samples_ms or not later.samples_ms:
        return Verdict(UNCLEAR, None, "no timed steps")
    before, after = _Known(earlier), _Known(later)
    ratios = [_ratio(a, b) for a, b in zip(after.steps, before.steps, strict=True)]
    median = ratios[-1]
    fewest = min(len(earlier.samples_ms), len(later.samples_ms))
    if fewest < FEWEST_STEPS:
        return Verdict(UNCLEAR, median.ratio, f"{fewest} steps: measure {ENOUGH_STEPS} or more")
    if earlier.busy or later.busy:
        return Verdict(UNCLEAR, median.ratio, "other programs were busy, measure again")
    waiting = _ratios_of_waiting(before, after)
    waits = ""
    if waiting:
        times = f"{before.waits[-1][0]:.3g}, then {after.waits[-1][0]:.3g} ms"
        waits = f"waited for data {times}: {waiting[-1].ratio} by that alone"
    for word, sign in ((SLOWER, 1), (FASTER, -1)):
        longer = sign * median.log > math.log1p(threshold)
        waited = bool(waiting) and all(ratio.beyond(sign, threshold) for ratio in waiting)
        computed = all(ratio.beyond(sign, threshold) for ratio in ratios)
        if longer and (waited or computed):
            return Verdict(word, median.ratio, waits if waited else "")
        if waited:
            return Verdict(UNCLEAR, median.ratio, f"{waits}, and whole steps do not show it")
    return _undecided(ratios, threshold, fewest)


@dataclass(frozen=True)
class _Log:
    """A logarithm, and how far its interval reaches down and up: for want of samples, and by what runs differ."""

    log: float
    down: float
    up: float
    drift: float

    @property
    def low(self) -> float:
        return self.log - math.hypot(self.down, self.drift)

    @property
    def high(self) -> float:
        return self.log + math.hypot(self.up, self.drift)

    @property
    def ratio(self) -> Ratio:
        return Ratio(math.exp(self.log), math.exp(self.low), math.exp(self.high))

    def beyond(self, sign: int, threshold: float) -> bool:
        return (self.low if sign > 0 else -self.high) > math.log1p(threshold)


def _ratio(over: _Log, under: _Log) -> _Log:
    """Each end from the ends of both (Zou and Donner, Stat. Med. 27, 2008): no draws of pairs, and exact when they
    are exchanged."""
    return _Log(
        over.log - under.log,
        math.hypot(over.down, under.up),
        math.hypot(over.up, under.down),
        math.hypot(over.drift, under.drift),
    )


class _Known:
    """What is known of a run: its quantiles and their intervals."""

    def __init__(self, run: Steps) -> None:
        times = run.samples_ms
        if min(times) <= 0:
            raise ValueError("steps take time: a sample is not above 0")
        self.drift = _Z * _spread(times) / math.sqrt(2)  # of one run: two of them differ by the spread
        stretches = _drawn(len(times))
        self.steps = [_log(*ends, self.drift) for ends in _quantiles(times, stretches)]
        self.waits: list[tuple[float, float, float]] = []
        if len(run.data_ms) == len(times):
            self.waits = _quantiles(run.data_ms, stretches)
            self.computing = [
                percentile([t - w for t, w in zip(times, run.data_ms, strict=True)], p) for p in _PERCENTS
            ]


def _spread(times: Sequence[float]) -> float:
    """The standard deviation between runs, as a part: from the quickest steps to the median."""
    quickest, quick = (math.log(percentile(times, 50) / percentile(times, p)) for p in (2, 10))
    return min(quickest, 2 * quick) * max(1.0, ENOUGH_STEPS / len(times))


def _log(value: float, low: float, high: float, drift: float) -> _Log:
    # The quantile of the samples need not lie between those of what was drawn.
    return _Log(math.log(value), max(0.0, math.log(value / low)), max(0.0, math.log(high / value)), drift)


def _ratios_of_waiting(before: _Known, after: _Known) -> list[_Log]:
    """Of whole steps, quantile by quantile, as if both had computed for as long: the geometric mean of their times."""
    if not before.waits or not after.waits:
        return []
    ratios = []
    for i in range(len(_PERCENTS)):
        computing = math.sqrt(max(0.0, before.computing[i]) * max(0.0, after.computing[i]))
        if not computing:
            return []
        sides = []
        for run in (after, before):
            value, low, high = (computing + wait for wait in run.waits[i])
            sides.append(_log(value, low, high, run.drift * run.waits[i][0] / value))
        ratios.append(_ratio(*sides))
    return ratios


def _drawn(count: int) -> list[list[int]]:
    """The first steps of stretches that together are as long as a run of ``count`` steps, for each resample: the same
    for every run of that length, so that a verdict is the same every time."""
    draw = random.Random(0)
    last = count - _length(count)
    resamples = max(200, min(500, 200_000 // count))
    return [
        [draw.randint(0, last) for _ in range(math.ceil(count / _length(count)))] for _ in range(resamples)
    ]


def _length(count: int) -> int:
    return max(1, count // _STRETCHES)


def _quantiles(times: Sequence[float], drawn: list[list[int]]) -> list[tuple[float, float, float]]:
    """For each of ``_PERCENTS``: the quantile, and where 95 of 100 resamples have it."""
    length = _length(len(times))
    found: list[list[float]] = []
    for starts in drawn:
        chosen = sorted([time for start in starts for time in times[start : start + length]][: len(times)])
        found.append([percentile(chosen, p) for p in _PERCENTS])
    columns = zip(_PERCENTS, zip(*found, strict=True), strict=True)
    return [(percentile(times, p), percentile(of, 2.5), percentile(of, 97.5)) for p, of in columns]


def _undecided(ratios: list[_Log], threshold: float, steps: int) -> Verdict:
    """Neither slower nor faster for certain: equal, or too little is known."""
    median = ratios[-1]
    low, high = min(r.low for r in ratios), max(r.high for r in ratios)
    limit = math.log1p(threshold)
    if -limit < low and high < limit:
        return Verdict(EQUAL, median.ratio)
    shows = limit + max(r.high - r.low for r in ratios) / 2
    wanted = [math.log1p(BLINDEST) - limit] * len(ratios)
    reason = f"only a change of {math.expm1(shows):.0%} would show"
    if low <= 0 <= high:
        if shows <= math.log1p(BLINDEST):
            return Verdict(EQUAL, median.ratio, f"a change of {math.expm1(shows):.0%} would show")
    else:
        wanted = [abs(abs(r.log) - limit) for r in ratios]
        reason = f"{math.expm1(median.log):+.1%}, not for certain beyond {100 * threshold:.3g}%"
    return Verdict(UNCLEAR, median.ratio, f"{reason}; {_advice(ratios, wanted, steps)}")


def _advice(ratios: list[_Log], wanted: list[float], steps: int) -> str:
    """How many more steps bring every interval to ``wanted`` on either side. What runs differ by stays in it."""
    if steps < ENOUGH_STEPS:
        return f"measure {ENOUGH_STEPS} steps or more"
    times = 1.0
    for ratio, half in zip(ratios, wanted, strict=True):
        room = half**2 - ratio.drift**2
        times = max(times, ((ratio.down + ratio.up) / 2) ** 2 / room if room > 0 else math.inf)
    if times > _FURTHEST:
        return "more steps will hardly tell, a quieter machine may"
    more = max(10, steps * (times - 1))
    return f"about {float(f'{more:.1g}'):,.0f} more steps may tell"
