"""Trainings that took turns: how many times as fast ours is, and how far the rounds lie apart."""

from collections.abc import Iterable
from statistics import median

from megaclass.report.compare import OURS
from megaclass.report.page.words import key_of, number
from megaclass.results.rows import Row
from megaclass.results.stats import Ratio, ratio_of_medians

# What is the same where two implementations train the same, whatever their arithmetic.
_WORK = (
    *("recipe", "backbone", "num_classes", "embedding_dim", "image_size", "global_batch_size", "world_size"),
    *("simulate_ranks", "sample_rate", "data", "device", "settings"),
)


def reference_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """Our row that a row of a training is to be compared with: the first of those that it took turns with, or if it had
    to be measured alone the latest that trained the same, at its precision if there is one. None: it is that one
    itself, or there is none."""
    ours = [other for other in rows if other.status == "ok" and other.implementation == OURS]
    beside = [other for other in ours if other.group and other.group == row.group]
    if beside or row.implementation == OURS:
        return beside[0] if beside and beside[0] is not row else None
    alike = [other for other in ours if _work(other) == _work(row)]
    exact = [other for other in alike if other.case.get("precision") == row.case.get("precision")]
    return next(reversed(exact or alike), None)


def _work(row: Row) -> str:
    return key_of({name: row.case.get(name) for name in _WORK})


def times_as_fast(mine: Row, other: Row) -> Ratio | None:
    """How many times as fast as ``other`` ``mine`` is, by median steps, in the interval that drawing rounds anew gives;
    where they did not take turns, or once, drawing steps. None: no times in one of them."""
    theirs, ours = round_medians(other), round_medians(mine)
    if mine.group and mine.group == other.group and len(theirs) == len(ours) > 1:
        return ratio_of_medians(theirs, ours, paired=True)
    theirs, ours = _steps(other), _steps(mine)
    return ratio_of_medians(theirs, ours) if theirs and ours else None


def round_medians(row: Row) -> list[float]:
    """The median step of every timed epoch, ms: what takes turns does so epoch by epoch."""
    steps, rounds = _steps(row), len(row.epochs)
    if not rounds or not steps or len(steps) % rounds:
        return []
    size = len(steps) // rounds
    return [median(steps[i : i + size]) for i in range(0, len(steps), size)]


def spread(row: Row) -> float | None:
    """How far the medians of the rounds lie apart, as a part of their median; None for a single round."""
    found = round_medians(row)
    return (max(found) - min(found)) / median(found) if len(found) > 1 else None


def _steps(row: Row) -> list[float]:
    """The timed steps, or none where not all are times: rows are read from files that anyone may have written."""
    known = [value for value in map(number, row.samples_ms) if value is not None and value > 0]
    return known if len(known) == len(row.samples_ms) else []
