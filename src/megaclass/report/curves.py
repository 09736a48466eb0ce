"""The pictures of runs, drawn from ``events.jsonl`` alone: loss and ROC curves of one, and the curves of seeds."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from megaclass.errors import UserError
from megaclass.results.events import EvaluationEvent, Event, StepEvent, read_events

# Hues that stay apart for colour-blind readers (Okabe and Ito, Color Universal Design, 2008).
BLUE, ORANGE = "#0072B2", "#D55E00"
EVALUATION_COLOURS = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
Curve = dict[int, float]  # by optimizer step


def draw_run(run_dir: str | Path) -> list[Path]:
    """Draw ``loss.png``, and ``roc.png`` if an evaluation had a ROC curve, into ``run_dir``.

    Returns the pictures written (900 x 500 pixels). Raises UserError if the run has logged no step.
    """
    run_dir = Path(run_dir)
    events = read_events(run_dir / "events.jsonl")
    steps = [event for event in events if isinstance(event, StepEvent)]
    if not steps:
        raise UserError(f"{run_dir}: the run has logged no step yet")
    pictures = [_save(_loss_figure(steps, _evaluations(events)), run_dir / "loss.png")]
    last = {event.name: event for event in _evaluations(events) if event.roc and event.roc["far"]}
    if last:
        pictures.append(_save(_roc_figure(list(last.values())), run_dir / "roc.png"))
    return pictures


def _evaluations(events: list[Event]) -> list[EvaluationEvent]:
    return [event for event in events if isinstance(event, EvaluationEvent)]


def _loss_figure(steps: list[StepEvent], evaluations: list[EvaluationEvent]) -> Figure:
    """Loss and learning rate against the step and, above them, what the evaluations found."""
    figure = _figure()
    scored = [event for event in evaluations if _score(event) is not None]
    if scored:
        upper, axes = figure.subplots(2, sharex=True, height_ratios=(1, 2.4))
        _draw_scores(upper, scored)
    else:
        axes = figure.subplots()
    axes.set(xlabel="optimizer step", ylabel="loss (nats)")
    at = [event.step for event in steps]
    # A loss that was not finite is None: a gap in the line.
    losses = [math.nan if event.loss is None else event.loss for event in steps]
    (loss_line,) = axes.plot(at, losses, color=BLUE, linewidth=1.5, label="loss")
    if len(steps) < 20:
        loss_line.set_marker("o")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))

    rate_axes = axes.twinx()
    rates = [event.learning_rate for event in steps]
    (rate_line,) = rate_axes.plot(
        at, rates, color=ORANGE, linewidth=1.2, linestyle="--", label="learning rate"
    )
    rate_axes.set(ylabel="learning rate", ylim=(0, 1.05 * max(rates) or 1))
    axes.legend(handles=[loss_line, rate_line], loc="upper right")
    return figure


def _score(event: EvaluationEvent) -> float | None:
    """The one figure that stands for an evaluation."""
    return event.metrics.get("pair_accuracy", event.metrics.get("top1"))


def _draw_scores(axes: Axes, scored: list[EvaluationEvent]) -> None:
    axes.set_ylabel("accuracy")
    for colour, name in zip(
        itertools.cycle(EVALUATION_COLOURS), sorted({event.name for event in scored}), strict=False
    ):
        events = [event for event in scored if event.name == name]
        scores = [_score(event) or 0.0 for event in events]
        label = f"{name}: {100 * scores[-1]:.2f} % at step {events[-1].step:,}"
        axes.plot([event.step for event in events], scores, "o-", color=colour, markersize=4, label=label)
    axes.set_ylim(top=min(1.005, axes.get_ylim()[1]))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(loc="lower right")


def _roc_figure(evaluations: list[EvaluationEvent]) -> Figure:
    figure = _figure()
    axes = figure.subplots()
    axes.set(xscale="log", xlabel="false accept rate (FAR)", ylabel="true accept rate (TAR)")
    rocs = [event.roc for event in evaluations if event.roc]
    # No logarithm of zero: what is accepted before the first false accept stands at the left edge.
    edge = min(1e-3, *(far / 2 for roc in rocs for far in roc["far"] if far > 0))
    for colour, event, roc in zip(itertools.cycle(EVALUATION_COLOURS), evaluations, rocs, strict=False):
        far = [max(rate, edge) for rate in roc["far"]]
        axes.step(far, roc["tar"], where="post", color=colour, linewidth=1.8, label=_caption(event))
    lowest = min(0.9, *(min(roc["tar"]) for roc in rocs))
    margin = 0.02 * (1 - lowest)
    axes.set(xlim=(edge, 1), ylim=(max(-margin, lowest - 10 * margin), 1 + margin))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(loc="lower right")
    return figure


def draw_seeds(path: str | Path, runs: Mapping[int, str | Path], metric: str, title: str) -> Path | None:
    """Draw the run directories of ``runs``, by seed, each thin and their mean bold: the metric where all evaluated it
    several times on the way, else the loss. Returns the path, or None where nothing is to be drawn."""
    curves, of = seed_curves(runs, metric)
    if not curves:
        return None
    figure = _figure()
    axes = figure.subplots()
    label = f"{len(curves)} seeds"
    for curve in curves.values():
        axes.plot([*curve], [*curve.values()], color=EVALUATION_COLOURS[2], linewidth=0.9, label=label)
        label = ""
    common = sorted(set.intersection(*map(set, curves.values())))
    mean = [fmean(curve[step] for curve in curves.values()) for step in common]
    marker = "o" if len(common) < 20 else None
    axes.plot(common, mean, color=BLUE, linewidth=2.6, label="their mean", marker=marker)
    axes.set(xlabel="optimizer step", ylabel="loss (nats)" if of == "loss" else of.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend()
    return _save(figure, Path(path))


def seed_curves(runs: Mapping[int, str | Path], metric: str) -> tuple[dict[int, Curve], str]:
    """The curve of each seed, and what it is of: the metric (of the first set that was evaluated) or ``loss``."""
    evaluated: dict[int, Curve] = {}
    losses: dict[int, Curve] = {}
    for seed, run in runs.items():
        events = read_events(Path(run) / "events.jsonl")
        found = _evaluations(events)
        evaluated[seed] = {
            event.step: event.metrics[metric]
            for event in found
            if event.name == found[0].name and event.metrics.get(metric) is not None
        }
        steps = [event for event in events if isinstance(event, StepEvent)]
        losses[seed] = {event.step: math.nan if event.loss is None else event.loss for event in steps}
    if evaluated and all(len(curve) > 1 for curve in evaluated.values()):
        return evaluated, metric
    return {seed: curve for seed, curve in losses.items() if curve}, "loss"


def _caption(event: EvaluationEvent) -> str:
    caption = f"{event.name}, step {event.step:,}"
    if event.metrics.get("auc") is not None:
        caption += f", AUC {event.metrics['auc']:.4f}"
    if event.metrics.get("pair_accuracy") is not None:
        spread = event.metrics.get("pair_accuracy_std") or 0.0
        caption += f", accuracy {100 * event.metrics['pair_accuracy']:.2f} ± {100 * spread:.2f} %"
    return caption


def _figure() -> Figure:
    """An empty figure outside pyplot: no window, no global state, safe in any thread."""
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    for axes in figure.axes:
        axes.spines["top"].set_visible(False)
        axes.spines["right"].set_visible(axes.yaxis.get_label_position() == "right")
        if axes.yaxis.get_label_position() == "left":
            axes.grid(alpha=0.25)
    figure.savefig(path)
    return path
