"""The pictures of runs, drawn from ``events.jsonl`` alone: loss and ROC curves of one, and the curves of seeds."""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from megaclass.errors import UserError
from megaclass.results.events import EvaluationEvent, StepEvent, read_events
from megaclass.results.rows import Row
from megaclass.results.rundir import write_whole

# Hues that stay apart for colour-blind readers (Okabe and Ito, Color Universal Design, 2008).
BLUE, ORANGE = "#0072B2", "#D55E00"
EVALUATION_COLOURS = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
Curve = dict[int, float]  # by optimizer step


def draw_run(run_dir: str | Path) -> list[Path]:
    """Draw ``loss.png``, and ``roc.png`` if an evaluation had a ROC curve, into ``run_dir``.

    Returns the pictures written (900 x 500 pixels). Raises UserError if the run has logged no step.
    """
    run_dir = Path(run_dir)
    steps, evaluations = _events(run_dir)
    if not steps:
        raise UserError(f"{run_dir}: the run has logged no step yet")
    pictures = [_save(_loss_figure(steps, evaluations), run_dir / "loss.png")]
    last = {event.name: event for event in evaluations if event.roc and event.roc["far"]}
    if last:
        pictures.append(_save(_roc_figure(list(last.values())), run_dir / "roc.png"))
    return pictures


def draw_seeds(directory: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw ``curves.png`` of a study: of the run directories ``seed-N`` in it, for the seeds with ``ok`` rows, each
    thin and their mean bold: the metric where all evaluated it several times on the way, else the loss."""
    trained = [row for row in rows if row.status == "ok"]
    metric = trained[0].case["metric"] if trained else ""
    curves, of = seed_curves({row.case["seed"]: directory / f"seed-{row.case['seed']}" for row in trained}, metric)
    if not curves:
        return []
    figure = _figure()
    axes = figure.subplots()
    for number, curve in enumerate(curves.values()):
        label = "" if number else f"{len(curves)} seeds"
        axes.plot([*curve], [*curve.values()], color=EVALUATION_COLOURS[2], linewidth=0.9, label=label)
    common = sorted(set.intersection(*map(set, curves.values())))
    mean = [fmean(curve[step] for curve in curves.values()) for step in common]
    axes.plot(common, mean, "-o" if len(common) < 20 else "-", color=BLUE, linewidth=2.6, label="their mean")
    _of_steps(axes, "loss (nats)" if of == "loss" else of.replace("_", " "))
    axes.set_title(str(trained[0].case["recipe"]), loc="left", fontsize=11)
    axes.legend()
    return [_save(figure, directory / "curves.png")]


def seed_curves(runs: Mapping[int, Path], metric: str) -> tuple[dict[int, Curve], str]:
    """The curve of each seed, and what it is of: the metric (of the first set that was evaluated) or ``loss``."""
    evaluated: dict[int, Curve] = {}
    losses: dict[int, Curve] = {}
    for seed, run in runs.items():
        steps, found = _events(run)
        scores = {event.step: event.metrics.get(metric) for event in found if event.name == found[0].name}
        evaluated[seed] = {step: score for step, score in scores.items() if score is not None}
        losses[seed] = dict(zip((event.step for event in steps), _losses(steps), strict=True))
    if all(len(curve) > 1 for curve in evaluated.values()):
        return evaluated, metric
    return {seed: curve for seed, curve in losses.items() if curve}, "loss"


def _events(run: Path) -> tuple[list[StepEvent], list[EvaluationEvent]]:
    events = read_events(run / "events.jsonl")
    steps = [event for event in events if isinstance(event, StepEvent)]
    return steps, [event for event in events if isinstance(event, EvaluationEvent)]


def _losses(steps: list[StepEvent]) -> list[float]:
    """A loss that was not finite is None: a gap in the line."""
    return [math.nan if event.loss is None else event.loss for event in steps]


def _loss_figure(steps: list[StepEvent], evaluations: list[EvaluationEvent]) -> Figure:
    """Loss and learning rate against the step and, above them, what the evaluations found."""
    figure = _figure()
    scored = [event for event in evaluations if _score(event) is not None]
    if scored:
        upper, axes = figure.subplots(2, sharex=True, height_ratios=(1, 2.4))
        _draw_scores(upper, scored)
    else:
        axes = figure.subplots()
    _of_steps(axes, "loss (nats)")
    at, rates = [event.step for event in steps], [event.learning_rate for event in steps]
    style = "-o" if len(steps) < 20 else "-"
    (loss,) = axes.plot(at, _losses(steps), style, color=BLUE, linewidth=1.5, label="loss")
    axes.set_ylim(bottom=0)
    rate_axes = axes.twinx()
    (rate,) = rate_axes.plot(at, rates, "--", color=ORANGE, linewidth=1.2, label="learning rate")
    rate_axes.set(ylabel="learning rate", ylim=(0, 1.05 * max(rates) or 1))
    axes.legend(handles=[loss, rate], loc="upper right")
    return figure


def _score(event: EvaluationEvent) -> float | None:
    """The one figure that stands for an evaluation."""
    return event.metrics.get("pair_accuracy", event.metrics.get("top1"))


def _draw_scores(axes: Axes, scored: list[EvaluationEvent]) -> None:
    axes.set_ylabel("accuracy")
    names = sorted({event.name for event in scored})
    for colour, name in zip(itertools.cycle(EVALUATION_COLOURS), names, strict=False):
        curve = {event.step: _score(event) or 0.0 for event in scored if event.name == name}
        step, score = list(curve.items())[-1]
        label = f"{name}: {100 * score:.2f} % at step {step:,}"
        axes.plot([*curve], [*curve.values()], "o-", color=colour, markersize=4, label=label)
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


def _caption(event: EvaluationEvent) -> str:
    caption, metrics = f"{event.name}, step {event.step:,}", event.metrics
    if metrics.get("auc") is not None:
        caption += f", AUC {metrics['auc']:.4f}"
    if metrics.get("pair_accuracy") is not None:
        spread = metrics.get("pair_accuracy_std") or 0.0
        caption += f", accuracy {100 * metrics['pair_accuracy']:.2f} ± {100 * spread:.2f} %"
    return caption


def _of_steps(axes: Axes, label: str) -> None:
    axes.set(xlabel="optimizer step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _figure() -> Figure:
    """An empty figure outside pyplot: no window, no global state, safe in any thread."""
    return Figure(figsize=(9, 5), dpi=100, layout="constrained")


def _save(figure: Figure, path: Path) -> Path:
    for axes in figure.axes:
        left = axes.yaxis.get_label_position() == "left"
        axes.spines["top"].set_visible(False)
        axes.spines["right"].set_visible(not left)
        if left:
            axes.grid(alpha=0.25)
    picture = io.BytesIO()
    figure.savefig(picture)
    write_whole(path, picture.getvalue())
    return path
