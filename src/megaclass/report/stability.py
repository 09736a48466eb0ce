"""What the seeds of a recipe say together, as tables for the console, in the shape of the published ones: mean,
standard deviation, minimum and maximum of the final metric, and the time to train."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from megaclass.results.rows import Row

SHARES = ("top1", "top5", "pair_accuracy", "auc")  # 0 to 1, told in percent


@dataclass(frozen=True)
class Spread:
    """Of some values, of which there is at least one. deviation: of the sample (n - 1); None of a single value."""

    count: int
    mean: float
    deviation: float | None
    minimum: float
    maximum: float


def spread(values: Sequence[float]) -> Spread:
    deviation = stdev(values) if len(values) > 1 else None
    return Spread(len(values), fmean(values), deviation, min(values), max(values))


def metric_spread(rows: Sequence[Row]) -> Spread | None:
    """Of the final metric of the rows that have it; None where none has."""
    values = _results(rows, rows[0].case["metric"])
    return spread(values) if values else None


def stability_tables(rows: Sequence[Row]) -> Group:
    """A line a seed, and below what they say together. ``rows`` are the seeds of one case, in any status."""
    case = rows[0].case
    return Group(
        Text(case_text(case), style="bold"),
        _seed_table(rows),
        "",
        Text(f"all seeds: {name_of(case['metric'])}", style="bold"),
        _spread_table(rows),
    )


def _seed_table(rows: Sequence[Row]) -> Table:
    metrics = list(dict.fromkeys((rows[0].case["metric"], "final_loss")))
    table = _table("seed", *map(name_of, metrics), "time to train", "samples/s")
    for row in rows:
        if row.status != "ok":
            table.add_row(str(row.case["seed"]), row.status)
            continue
        table.add_row(
            str(row.case["seed"]),
            *(value_text(metric, row.result.get(metric)) for metric in metrics),
            time_text(row.result.get("seconds")),
            "" if row.samples_per_second is None else f"{row.samples_per_second:,.0f}",
        )
    return table


def _spread_table(rows: Sequence[Row]) -> Table:
    case, found = rows[0].case, metric_spread(rows)
    table = _table(
        *("epochs", "seeds", "average", "standard deviation", "minimum", "maximum", "time to train"),
    )
    epochs = case.get("epochs_trained")
    head = "" if epochs is None else f"{epochs:g}"
    if found is None:
        table.add_row(head, "0", "none has it")
        return table
    seconds = _results(rows, "seconds")
    table.add_row(
        head,
        str(found.count),
        value_text(case["metric"], found.mean),
        "needs 2 seeds" if found.deviation is None else value_text(case["metric"], found.deviation, digits=3),
        value_text(case["metric"], found.minimum),
        value_text(case["metric"], found.maximum),
        time_text(fmean(seconds)) if seconds else "",
    )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 1))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _results(rows: Sequence[Row], name: str) -> list[float]:
    found = (row.result.get(name) for row in rows if row.status == "ok")
    return [value for value in found if value is not None]


def case_text(case: Mapping[str, Any]) -> str:
    """What was trained, in a line."""
    text = (
        f"{case['recipe']}, {case['precision']}, global batch {case['global_batch_size']}, {case['device']}"
    )
    if case["world_size"] > 1:
        text += f", {case['world_size']} ranks"
    return "".join([text, *(f", {key} {value}" for key, value in case["settings"].items())])


def name_of(metric: str) -> str:
    name = {"top1": "top 1", "final_loss": "final loss"}.get(metric, metric.replace("_", " "))
    return f"{name}, %" if metric in SHARES else name


def value_text(metric: str, value: float | None, digits: int | None = None) -> str:
    """A share in percent with two digits behind the point, anything else with four."""
    if value is None:
        return "none"
    if metric in SHARES:
        return f"{100 * value:.{digits or 2}f}"
    return f"{value:.4f}"


def time_text(seconds: float | None) -> str:
    """With about three digits, in the unit that suits it."""
    if seconds is None:
        return ""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds:.1f} s"
