"""Statistics of measured times: percentiles, and how much slower one thing is than another.

Pure functions on lists of numbers, with the standard library alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

PERCENTILES = (50, 90, 95, 99, 100)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Linear between the two nearest samples, as numpy's default."""
    if not samples or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(samples)} samples does not exist")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(samples: Sequence[float]) -> dict[str, float]:
    """``mean`` and the percentiles ``p50`` to ``p100``."""
    return {"mean": fmean(samples)} | {f"p{p}": percentile(samples, p) for p in PERCENTILES}


@dataclass(frozen=True)
class Ratio:
    """The ratio of two medians, and the interval in which resampling puts it 95 times out of 100."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio_of_medians(
    samples: Sequence[float], reference: Sequence[float], *, paired: bool = False, resamples: int = 2000
) -> Ratio:
    """``median(samples) / median(reference)`` with its bootstrap interval (Efron, Ann. Statist. 7, 1979).

    paired: sample i of both was measured in the same round, so rounds are drawn rather than samples: what slows
        the machine for a while slows both, and leaves their ratio.
    """
    if not samples or not reference or min(*samples, *reference) <= 0:
        raise ValueError("a ratio needs positive samples of both")
    if paired and len(samples) != len(reference):
        raise ValueError(f"paired samples differ in number: {len(samples)} and {len(reference)}")
    draw = random.Random(0)
    ratios = []
    for _ in range(resamples):
        chosen = draw.choices(range(len(samples)), k=len(samples))
        other = chosen if paired else draw.choices(range(len(reference)), k=len(reference))
        ratios.append(median(samples[i] for i in chosen) / median(reference[i] for i in other))
    return Ratio(median(samples) / median(reference), percentile(ratios, 2.5), percentile(ratios, 97.5))


def interval(
    samples: Sequence[float], percent: float | None = 50, *, resamples: int = 1000
) -> tuple[float, float]:
    """Where resampling puts ``percentile(samples, percent)``, or the mean where that is None, 95 times out of 100.

    For one's own samples against a number that came without any, such as a published one. No resample is drawn
    sample by sample: the k-th smallest of a resample is the sample at the place that a beta distribution draws,
    and the mean of a resample spreads by the deviation over the root of their number. So it costs milliseconds
    for any number of samples.
    """
    if not samples:
        raise ValueError("an interval needs samples")
    n = len(samples)
    if percent is None:
        half = 1.96 * pstdev(samples) / n**0.5
        return fmean(samples) - half, fmean(samples) + half
    ordered = sorted(samples)
    place = (n - 1) * percent / 100
    smaller = int(place) + 1  # how many of a resample are not larger than the lower of its two samples
    draw = random.Random(0)
    drawn = []
    for _ in range(resamples):
        lower = draw.betavariate(smaller, n - smaller + 1)
        upper = lower + (1 - lower) * draw.betavariate(1, n - smaller) if smaller < n else lower
        below, above = (ordered[min(int(n * part), n - 1)] for part in (lower, upper))
        drawn.append(below + (above - below) * (place % 1))
    return percentile(drawn, 2.5), percentile(drawn, 97.5)
