"""What evaluations, predictions and data sets are told as on the console."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType

from megaclass.report.table import Cell, Column, Line, Table, text_table, to_rich
from megaclass.report.words import changes


def verification_table(metrics: Mapping[str, Any], title: str = "Verification") -> RenderableType:
    """The table of ``verification_metrics``, with ``one_shot_20way`` (0..1), of 20 or any other number of ways,
    and the pairs of ``all_pairs_tar`` if they are there: TAR and AUC are then of those."""
    pairs = f"{metrics['pairs']:,} pairs"
    if "genuine_pairs" in metrics and "impostor_pairs" in metrics:
        every = metrics["genuine_pairs"] + metrics["impostor_pairs"]
        pairs = f"accuracy: {pairs}; TAR and AUC: {every:,} pairs"
    spread = f"{100 * metrics['pair_accuracy_std']:.2f}"
    lines = [("pair accuracy", f"{_percent(metrics['pair_accuracy'])} ± {spread}")]
    for far, tar in metrics["tar_at_far"].items():
        none = f"n/a (needs at least {round(1 / float(far)):,} impostor pairs)"
        lines.append((f"TAR @ FAR {far}", none if tar is None else _percent(tar)))
    auc, threshold = metrics["auc"], metrics["threshold"]
    lines.append(("AUC", "n/a (needs pairs of both kinds)" if auc is None else f"{auc:.5f}"))
    lines.append(("threshold (cosine)", "n/a" if threshold is None else f"{threshold:.4f}"))
    for key, accuracy in metrics.items():
        ways = re.fullmatch(r"one_shot_(\d+)way", key)
        if ways and accuracy is not None:
            lines.append((f"{ways[1]}-way one-shot", _percent(accuracy)))
    return _pairs(f"{title} ({pairs})", lines)


def classification_table(metrics: Mapping[str, Any], title: str = "Classification") -> RenderableType:
    """The table of ``classification_metrics``."""
    return _pairs(title, [(f"top {k}", _percent(metrics[f"top{k}"])) for k in (1, 5)])


def prediction_table(guesses: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The best classes of an image: ``rank``, ``label``, ``class``, ``name``, ``probability`` or ``cosine`` of each.

    ``class`` and ``name`` may be None; a column of which all are is left out, and without a class the label stands.
    """
    measure = "cosine" if any("cosine" in guess for guess in guesses) else "probability"
    named = any(guess["name"] is not None for guess in guesses)
    heads = [Column("rank"), Column("class", False), *[Column("name", False)] * named, Column(measure)]
    lines = []
    for guess in guesses:
        known = guess["label"] if guess["class"] is None else guess["class"]
        words = [guess["rank"], known, *([guess["name"]] if named else []), score_text(guess)]
        lines.append(Line(tuple(Cell(str(word)) for word in words)))
    return to_rich(Table("", heads, lines))


def score_text(guess: Mapping[str, Any]) -> str:
    """The probability or cosine of a guess, as a person reads it."""
    return _percent(guess["probability"]) if "probability" in guess else f"{guess['cosine']:.4f}"


def info_table(found: Mapping[str, Any]) -> RenderableType:
    """The table of a ``SetInfo.row()``."""
    spread, empty = found["images_per_class"], found["classes_without_images"]
    covered = f"0..{found['classes'] - 1:,}"
    sampled = ", drawn at random" if found["looked_at"] < found["images"] else ""
    lines = [
        ("kind", found["kind"]),
        ("images", f"{found['images']:,}"),
        ("classes", f"{found['classes']:,}"),
        ("class names", "yes" if found["class_names"] else "none"),
        ("bytes", f"{found['total_bytes'] / 1e6:,.1f} MB"),
        (
            "images a class",
            f"{spread['min']:,} to {spread['max']:,}, mean {spread['mean']:,.1f}, median {spread['median']:,.0f}",
        ),
        ("labels", "" if empty else f"{covered}, every class has images"),
        ("classes without images", f"{empty:,}: labels do not cover {covered}" if empty else ""),
        ("classes with one image", f"{found['classes_with_one_image']:,}"),
        ("headers read", f"{found['looked_at']:,} of {found['images']:,}{sampled}"),
    ]
    if found["formats"]:
        height, width, encoded = found["height"], found["width"], found["encoded_bytes"]
        kilobytes = (encoded[name] / 1e3 for name in ("mean", "min", "max"))
        lines += [
            ("formats", ", ".join(f"{name} {n:,}" for name, n in found["formats"].items())),
            ("mean size", f"{width['mean']:,.0f} x {height['mean']:,.0f} pixels (width x height)"),
            ("sizes", _sizes(found)),
            ("encoded", "mean {:,.1f} kB, {:,.1f} to {:,.1f}".format(*kilobytes)),
        ]
    if found["damaged"]:
        lines.append(("damaged", f"{found['damaged']:,}; `megaclass data check` lists them"))
    return to_rich(text_table(found["path"], ("", ""), [line for line in lines if line[1]]))


def check_table(
    path: str, counts: Mapping[str, int], kinds: Mapping[str, str], images: int
) -> RenderableType:
    """How many findings of each of the ``kinds`` (name -> what it means) there are."""
    lines = [("images", f"{images:,}")]
    lines += [(text, f"{counts[kind]:,}") for kind, text in kinds.items() if counts.get(kind)]
    return _pairs(path, [*lines, ("result", "something was found" if any(counts.values()) else "sound")])


def plan_tables(plan: Sequence[Any]) -> Group:
    """The cases of a suite: those to be measured, and how they were scaled down; then what is left out, by reason."""
    measured = [
        (
            one.case.text,
            changes(asked.parameters(), one.case.parameters()) if (asked := one.original_case) else "",
        )
        for one in plan
        if not one.skip
    ]
    left_out = [((one.original_case or one.case).text, one.skip) for one in plan if one.skip]
    tables = (
        text_table("To be measured", ("case", "scaled down from what was published"), measured),
        text_table("Left out", ("case", "reason"), left_out),
    )
    return Group(*(to_rich(table) for table in tables if table.lines))


def _pairs(title: str, lines: Iterable[Sequence[str]]) -> RenderableType:
    """Names, and numbers to the right."""
    table = text_table(title, ("", ""), lines)
    return to_rich(Table(title, [Column("", False), Column("")], table.lines))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _sizes(found: Mapping[str, Any]) -> str:
    looked_at = max(1, found["looked_at"] - found["damaged"])
    common = [
        f"{width} x {height} ({count / looked_at:.0%})" for height, width, count in found["common_sizes"]
    ]
    if len(common) == 1:
        return "all " + common[0].partition(" (")[0]
    widths, heights = found["width"], found["height"]
    text = f"{widths['min']} x {heights['min']} to {widths['max']} x {heights['max']}"
    return f"{text}; commonest {', '.join(common)}"
