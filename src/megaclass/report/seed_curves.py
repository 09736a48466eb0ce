"""The curves of all seeds of a recipe in one picture: each of them thin, their mean bold."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from megaclass.report.stability import SHARES, metric_spread, name_of, value_text
from megaclass.results.events import EvaluationEvent, StepEvent, read_events
from megaclass.results.rows import Row

SEED, MEAN = "#56B4E9", "#0B3C5D"
Curve = dict[int, float]  # by optimizer step


def draw_seeds(path: str | Path, runs: Mapping[int, str | Path], rows: Sequence[Row]) -> Path | None:
    """Draw the run directories of ``runs``, by seed, as a PNG of 900 x 500 pixels: the final metric of their ``rows``
    where it was evaluated several times on the way, else the loss. Returns the path, or None where nothing is to be
    drawn."""
    curves, metric = curves_of(runs, rows[0].case["metric"])
    if not curves:
        return None
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, curve in enumerate(curves.values()):
        label = f"{len(curves)} seeds: {', '.join(map(str, curves))}" if number == 0 else None
        axes.plot([*curve], [*curve.values()], color=SEED, linewidth=0.9, label=_short(label))
    mean = mean_curve(curves)
    marker = "o" if len(mean) < 20 else None
    axes.plot([*mean], [*mean.values()], color=MEAN, linewidth=2.6, label="their mean", marker=marker)
    axes.set(xlabel="optimizer step", ylabel=name_of(metric).removesuffix(", %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if metric in SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.legend(loc="lower right")
    else:
        axes.set_ylabel("loss (nats)")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")
    axes.set_title(_title(rows), loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(path)
    return Path(path)


def curves_of(runs: Mapping[int, str | Path], metric: str) -> tuple[dict[int, Curve], str]:
    """The curve of each seed, and what it is of: the metric if every run has evaluated it more than once, or
    ``loss``."""
    events = {seed: read_events(Path(run) / "events.jsonl") for seed, run in runs.items()}
    evaluated = {seed: _evaluations(found, metric) for seed, found in events.items()}
    if evaluated and all(len(curve) > 1 for curve in evaluated.values()):
        return evaluated, metric
    losses = {
        seed: {e.step: math.nan if e.loss is None else e.loss for e in found if isinstance(e, StepEvent)}
        for seed, found in events.items()
    }
    return {seed: curve for seed, curve in losses.items() if curve}, "loss"


def _evaluations(events: Sequence[object], metric: str) -> Curve:
    """Of several sets the first one's, as in the result of a run."""
    found = [event for event in events if isinstance(event, EvaluationEvent)]
    return {
        event.step: event.metrics[metric]
        for event in found
        if event.name == found[0].name and event.metrics.get(metric) is not None
    }


def mean_curve(curves: Mapping[int, Curve]) -> Curve:
    """Over the steps that all seeds have."""
    common = set.intersection(*(set(curve) for curve in curves.values()))
    return {step: fmean(curve[step] for curve in curves.values()) for step in sorted(common)}


def _title(rows: Sequence[Row]) -> str:
    case, found = rows[0].case, metric_spread(rows)
    if found is None:
        return str(case["recipe"])
    unit = " %" if case["metric"] in SHARES else ""
    text = f"{case['recipe']}: final {name_of(case['metric']).removesuffix(', %').removeprefix('final ')} "
    text += value_text(case["metric"], found.mean)
    if found.deviation is not None:
        text += f" ± {value_text(case['metric'], found.deviation)}"
    return f"{text}{unit} ({found.count} seed{'' if found.count == 1 else 's'})"


def _short(label: str | None) -> str | None:
    """Thousands of seeds would fill the picture."""
    return label if label is None or len(label) <= 48 else label[: label.index(":")]
