"""Statistics of measured times: percentiles, and how much slower one thing is than another, with intervals by
resampling (scipy.stats.bootstrap; Efron, Ann. Statist. 7, 1979). Pure functions on lists of numbers above 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

PERCENTILES = (50, 90, 95, 99, 100)
FEWEST = 6  # of fewer, even the least to the largest holds the median less than 95 times out of 100: 1 - 2 / 2 ** n
_AT_ONCE = 4_000_000  # numbers of resamples that are held in memory


def percentile(samples: Sequence[float], percent: float) -> float:
    """Linear between the two nearest samples."""
    import numpy as np

    return float(np.percentile(samples, percent))


def summary(samples: Sequence[float]) -> dict[str, float]:
    """``mean`` and the percentiles ``p50`` to ``p100``."""
    return {"mean": fmean(samples)} | {f"p{p}": percentile(samples, p) for p in PERCENTILES}


def quotient_text(value: float) -> str:
    """Two digits behind the point; below 0.1 three that count."""
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.3g}"


@dataclass(frozen=True)
class Ratio:
    """A ratio, and the interval in which resampling puts it 95 times out of 100; without one, both are ``value``."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return quotient_text(self.value)
        return f"{quotient_text(self.value)} ({quotient_text(self.low)} to {quotient_text(self.high)})"


def ratio_of_medians(
    samples: Sequence[float], reference: Sequence[float], *, paired: bool = False, resamples: int = 2000
) -> Ratio:
    """``median(samples) / median(reference)`` with its bootstrap interval; without one where either has too few.

    paired: sample i of both was measured in the same round, so rounds are drawn rather than samples: what slows
        the machine for a while slows both, and leaves their ratio.
    """
    value = median(samples) / median(reference)
    if min(len(samples), len(reference)) < FEWEST:
        return Ratio(value, value, value)
    import numpy as np

    def statistic(a: Any, b: Any, axis: int = -1) -> Any:
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    return Ratio(value, *resampled((samples, reference), statistic, paired=paired, resamples=resamples))


def interval(samples: Sequence[float], percent: float | None) -> tuple[float, float]:
    """Where resampling puts ``percentile(samples, percent)``, or the mean where that is None, 95 times out of 100.

    For :data:`FEWEST` samples or more of one's own against a number that came without any, such as a published one.
    """
    import numpy as np

    def statistic(a: Any, axis: int = -1) -> Any:
        return np.mean(a, axis=axis) if percent is None else np.percentile(a, percent, axis=axis)

    return resampled((samples,), statistic, resamples=1000)


def resampled(
    data: tuple[Any, ...], statistic: Any, *, resamples: int, paired: bool = False, batch: int = 0
) -> tuple[float, float]:
    """The interval that holds 95 of 100 resampled statistics: the same every time. batch: how many at once."""
    from scipy.stats import bootstrap

    found = bootstrap(
        data,
        statistic,
        paired=paired,
        n_resamples=resamples,
        batch=batch or max(1, _AT_ONCE // max(map(len, data))),
        vectorized=True,
        method="percentile",
        rng=0,
    ).confidence_interval
    low, high = sorted((float(found.low), float(found.high)))  # equal ones may be apart by rounding
    return low, high
