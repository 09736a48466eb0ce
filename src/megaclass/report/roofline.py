"""Roofline bounds as tables: by stage, by kind of layer, and what measured rows reach of them."""

from collections.abc import Sequence
from typing import Any

from megaclass.report.page.words import rate_text
from megaclass.report.texttable import TextTable, number
from megaclass.results.rows import setting_text


def title(bound: Any) -> str:
    peaks = bound.peaks
    flops = peaks.flops(bound.precision)
    return (
        f"{bound.backbone}, {bound.image_size} px, {bound.precision}, batch {bound.batch:,}; {peaks.name}: "
        f"{flops / 1e12:,.4g} TFLOP/s, {peaks.bytes_per_second / 1e9:,.4g} GB/s ({peaks.source})"
    )


_FLOPS = ("forward", "data", "weights")
_BOUND = (
    "stage",
    "GFLOP forward",
    "to data",
    "to weights",
    "MB unfused",
    "MB fused",
    "FLOP/B",
    "ms unfused",
    "ms fused",
)


def by_stage(bound: Any) -> TextTable:
    """Of an image: operations, and bytes moved if every operator reads and writes once, or norms, activations and
    sums are one pass; intensity of the latter; least ms of a step either way."""
    fused = {share.name: share for share in bound.by("stage", bound.fused)}
    lines = [_line(bound, share, fused[share.name]) for share in bound.by("stage", bound.unfused)]
    lines.append(_line(bound, bound.total(bound.unfused), bound.total(bound.fused)))
    return TextTable(title(bound), _BOUND, lines)


def _line(bound: Any, unfused: Any, fused: Any) -> list[str]:
    return [
        unfused.name,
        *(number(unfused.flops[name] / 1e9) for name in _FLOPS),
        *(number(share.bytes / bound.batch / 1e6) for share in (unfused, fused)),
        number(fused.all_flops * bound.batch / fused.bytes),
        *(number(1000 * share.seconds) for share in (unfused, fused)),
    ]


def by_kind(bound: Any) -> TextTable:
    """The least time of a step by kind of layer, fused: all of it, and where memory sets it."""
    shares = bound.by("kind", bound.fused)
    total = bound.total(bound.fused)
    lines = [
        [
            share.name,
            number(share.all_flops / 1e9),
            number(share.bytes / bound.batch / 1e6),
            number(1000 * share.seconds),
            f"{share.seconds / total.seconds:.0%}",
            f"{share.memory_seconds / share.seconds:.0%}",
        ]
        for share in sorted(shares, key=lambda share: -share.seconds)
    ]
    head = ("layers, fused", "GFLOP", "MB", "ms", "of the step", "held up by memory")
    return TextTable("", head, lines)


def speeds(bounds: Sequence[Any]) -> TextTable:
    """Images a second at most: training by the three bounds, and inference."""
    lines = []
    for bound in bounds:
        seconds = [
            bound.total(bound.unfused).seconds,
            bound.total(bound.fused).seconds,
            bound.plain_seconds,
            bound.total(bound.inference).seconds,
        ]
        name = f"{bound.backbone}, {bound.image_size} px"
        lines.append(
            [name, bound.precision, f"{bound.batch:,}", bound.peaks.name]
            + [number(bound.batch / value) for value in seconds]
        )
    head = ("backbone", "type", "batch", "machine", "unfused", "fused", "one layer", "inference")
    return TextTable("Images a second at most", head, lines, words=2)


def reached_sheet(found: Sequence[Any]) -> TextTable:
    """What part of its bound each row reaches."""
    lines = []
    for one in found:
        row, case = one.row, one.row.case
        classes = f"{case['num_classes']:,}" if case["num_classes"] else ""
        classes += rate_text(case)
        batch = case.get("batch_size") or case["global_batch_size"]
        lines.append(
            [
                f"{row.benchmark} {case['backbone']}, {case['image_size']} px",
                row.implementation + (f", {case['engine']}" if "engine" in case else ""),
                settings_text(case),
                classes,
                f"{batch:,}",
                case["precision"],
                number(row.step_ms["p50"]),
                number(1000 * one.seconds),
                f"{one.head_seconds / one.seconds:.0%}",
                f"{one.fraction:.0%}" if one.fraction >= 0.1 else f"{one.fraction:.1%}",
                str(len(row.samples_ms)),
            ]
        )
    head = (
        "what",
        "by",
        "settings",
        "classes",
        "batch",
        "type",
        "step ms",
        "bound ms",
        "of it head",
        "reached",
        "n",
    )
    return TextTable("Of the bound", head, lines, words=3)


def settings_text(case: Any) -> str:
    ranks = f"1 of {case['simulate_ranks']} ranks" if case.get("simulate_ranks", 1) > 1 else ""
    given = [f"{key}={setting_text(value)}" for key, value in case.get("settings", {}).items()]
    return ", ".join([*given, *([ranks] if ranks else [])])
