"""The pictures of a run: its loss and its ROC curves, drawn from ``events.jsonl`` alone."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from megaclass.errors import UserError
from megaclass.events import EvaluationEvent, Event, StepEvent, read_events

# Two hues that stay apart for colour-blind readers (Okabe and Ito, Color Universal Design, 2008).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"
MOST_MARKS = 8  # evaluations that get their figure written beside the mark


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
    figure = _figure()
    axes = figure.add_subplot()
    axes.set(xlabel="optimizer step", ylabel="loss (nats)")
    at = [event.step for event in steps]
    # A loss that was not finite is None: a gap in the line.
    losses = [math.nan if event.loss is None else event.loss for event in steps]
    (loss_line,) = axes.plot(at, losses, color=BLUE, linewidth=1.5, label="loss")
    if len(steps) < 20:
        loss_line.set_marker("o")
    if any(not math.isnan(loss) for loss in losses):
        axes.set_ylim(bottom=0)

    rate_axes = axes.twinx()
    rates = [event.learning_rate for event in steps]
    (rate_line,) = rate_axes.plot(
        at, rates, color=ORANGE, linewidth=1.2, linestyle="--", label="learning rate"
    )
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    rate_axes.spines["top"].set_visible(False)

    lines = [loss_line, rate_line]
    if evaluations:
        lines.append(_mark_evaluations(axes, evaluations))
    axes.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=len(lines), frameon=False)
    axes.grid(alpha=0.25)
    return figure


def _mark_evaluations(axes: Axes, evaluations: list[EvaluationEvent]):
    """A triangle on the step axis for each evaluation, and its figure above, at most MOST_MARKS of them."""
    on_axis = axes.get_xaxis_transform()  # x in steps, y as a share of the height
    at = [event.step for event in evaluations]
    (marks,) = axes.plot(
        at, [0.02] * len(at), "^", color=GREY, markersize=6, transform=on_axis, label="evaluation"
    )
    every = math.ceil(len(evaluations) / MOST_MARKS)
    for event in evaluations[::-every]:  # from the last one back, which is the one that counts
        score = event.metrics.get("pair_accuracy", event.metrics.get("top1"))
        if score is not None:
            axes.annotate(
                f"{100 * score:.1f} %",
                (event.step, 0.05),
                xycoords=on_axis,
                ha="center",
                fontsize=9,
                color=GREY,
            )
    return marks


def _roc_figure(evaluations: list[EvaluationEvent]) -> Figure:
    figure = _figure()
    axes = figure.add_subplot()
    axes.set(xscale="log", xlabel="false accept rate (FAR)", ylabel="true accept rate (TAR)")
    rocs = [event.roc for event in evaluations if event.roc]
    left = min((far for roc in rocs for far in roc["far"] if far > 0), default=1e-3)
    for event, roc in zip(evaluations, rocs, strict=True):
        # No logarithm of zero: what is accepted before the first false accept starts at the left edge.
        far = [max(rate, left / 2) for rate in roc["far"]]
        axes.step([*far, 1.0], [*roc["tar"], 1.0], where="post", linewidth=1.8, label=_caption(event))
    lowest = min(min(roc["tar"]) for roc in rocs)
    axes.set_xlim(left / 2, 1)
    axes.set_ylim(max(0.0, lowest - 0.1 * (1 - lowest) - 0.01), 1.005)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(loc="lower right")
    axes.grid(which="both", alpha=0.25)
    return figure


def _caption(event: EvaluationEvent) -> str:
    parts = []
    if event.metrics.get("auc") is not None:
        parts.append(f"AUC {event.metrics['auc']:.4f}")
    if event.metrics.get("pair_accuracy") is not None:
        spread = event.metrics.get("pair_accuracy_std") or 0.0
        parts.append(f"accuracy {100 * event.metrics['pair_accuracy']:.2f} ± {100 * spread:.2f} %")
    return f"{event.name}, step {event.step:,}: {', '.join(parts)}"


def _figure() -> Figure:
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    for axes in figure.axes:
        axes.spines["top"].set_visible(False)
        axes.margins(x=0.02)
    figure.savefig(path)
    return path
