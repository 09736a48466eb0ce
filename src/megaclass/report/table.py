"""Results of an evaluation as tables for the console."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def verification_table(metrics: Mapping[str, Any], title: str = "Verification") -> Table:
    """The table of ``verification_metrics``, with ``one_shot_20way`` (0..1), of 20 or any other number of ways,
    and the pairs of ``all_pairs_tar`` if they are there: TAR and AUC are then of those."""
    pairs = f"{metrics['pairs']:,} pairs"
    if "genuine_pairs" in metrics and "impostor_pairs" in metrics:
        every = metrics["genuine_pairs"] + metrics["impostor_pairs"]
        pairs = f"accuracy: {pairs}; TAR and AUC: {every:,} pairs"
    table = _table(f"{title} ({pairs})")
    table.add_row(
        "pair accuracy", f"{_percent(metrics['pair_accuracy'])} ± {100 * metrics['pair_accuracy_std']:.2f}"
    )
    for far, tar in metrics["tar_at_far"].items():
        needed = round(1 / float(far))
        table.add_row(
            f"TAR @ FAR {far}",
            f"n/a (needs at least {needed:,} impostor pairs)" if tar is None else _percent(tar),
        )
    auc, threshold = metrics["auc"], metrics["threshold"]
    table.add_row("AUC", "n/a (needs pairs of both kinds)" if auc is None else f"{auc:.5f}")
    table.add_row("threshold (cosine)", "n/a" if threshold is None else f"{threshold:.4f}")
    for key, accuracy in metrics.items():
        ways = re.fullmatch(r"one_shot_(\d+)way", key)
        if ways and accuracy is not None:
            table.add_row(f"{ways[1]}-way one-shot", _percent(accuracy))
    return table


def classification_table(metrics: Mapping[str, Any], title: str = "Classification") -> Table:
    """The table of ``classification_metrics``."""
    table = _table(title)
    table.add_row("top 1", _percent(metrics["top1"]))
    table.add_row("top 5", _percent(metrics["top5"]))
    return table


def prediction_table(guesses: Sequence[Mapping[str, Any]]) -> Table:
    """The best classes of an image: ``rank``, ``label``, ``class``, ``name``, ``probability`` or ``cosine`` of each.

    ``class`` and ``name`` may be None; a column of which all are is left out, and without a class the label stands.
    """
    measure = "cosine" if any("cosine" in guess for guess in guesses) else "probability"
    named = any(guess["name"] is not None for guess in guesses)
    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("class", overflow="fold")
    if named:
        table.add_column("name", overflow="fold")
    table.add_column(measure, justify="right")
    for guess in guesses:
        known = guess["label"] if guess["class"] is None else guess["class"]
        words = [guess["rank"], known, *([guess["name"]] if named else []), score_text(guess)]
        table.add_row(*(Text(printable(str(word))) for word in words))
    return table


def score_text(guess: Mapping[str, Any]) -> str:
    """The probability or cosine of a guess, as a person reads it."""
    return _percent(guess["probability"]) if "probability" in guess else f"{guess['cosine']:.4f}"


def printable(text: str) -> str:
    """A name that comes from elsewhere, on one line and without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
