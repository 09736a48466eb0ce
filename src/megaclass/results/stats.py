"""Statistics of measured times: percentiles, and how much slower one thing is than another, with intervals by
resampling (scipy.stats.bootstrap; Efron, Ann. Statist. 7, 1979). Pure functions on lists of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

PERCENTILES = (50, 90, 95, 99, 100)
_AT_ONCE = 4_000_000  # numbers of resamples that are held in memory


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
    """A ratio, and the interval in which resampling puts it 95 times out of 100."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio_of_medians(
    samples: Sequence[float], reference: Sequence[float], *, paired: bool = False, resamples: int = 2000
) -> Ratio:
    """``median(samples) / median(reference)`` with its bootstrap interval; without one where either is one sample.

    paired: sample i of both was measured in the same round, so rounds are drawn rather than samples: what slows
        the machine for a while slows both, and leaves their ratio.
    """
    if not samples or not reference or min(*samples, *reference) <= 0:
        raise ValueError("a ratio needs positive samples of both")
    if paired and len(samples) != len(reference):
        raise ValueError(f"paired samples differ in number: {len(samples)} and {len(reference)}")
    value = median(samples) / median(reference)
    if min(len(samples), len(reference)) < 2:
        return Ratio(value, value, value)
    import numpy as np

    def statistic(a: Any, b: Any, axis: int = -1) -> Any:
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    return Ratio(value, *resampled((samples, reference), statistic, paired=paired, resamples=resamples))


def interval(
    samples: Sequence[float], percent: float | None = 50, *, resamples: int = 1000
) -> tuple[float, float]:
    """Where resampling puts ``percentile(samples, percent)``, or the mean where that is None, 95 times out of 100.

    For one's own samples against a number that came without any, such as a published one.
    """
    if not samples:
        raise ValueError("an interval needs samples")
    if len(samples) < 2:
        return samples[0], samples[0]
    import numpy as np

    def statistic(a: Any, axis: int = -1) -> Any:
        return np.mean(a, axis=axis) if percent is None else np.percentile(a, percent, axis=axis)

    return resampled((samples,), statistic, resamples=resamples)


def resampled(
    data: tuple[Any, ...], statistic: Any, *, resamples: int, paired: bool = False, batch: int = 0
) -> tuple[float, float]:
    """The interval that holds 95 of 100 resampled statistics: the same every time. batch: how many at once."""
    from scipy.stats import bootstrap

    batch = batch or max(1, min(resamples, _AT_ONCE // max(map(len, data))))
    found = bootstrap(
        data,
        statistic,
        paired=paired,
        n_resamples=resamples,
        batch=batch,
        vectorized=True,
        method="percentile",
        rng=0,
    ).confidence_interval
    low, high = sorted((float(found.low), float(found.high)))  # equal ones may be apart by rounding
    return low, high
