import math

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from made_rows import lost, row
from megaclass.errors import UserError
from megaclass.report.console import classification_table, verification_table
from megaclass.report.curves import draw_run, draw_seeds, seed_curves
from megaclass.results.events import EvaluationEvent, EventWriter, StartEvent, StepEvent

METRICS = {
    "pair_accuracy": 0.98567,
    "pair_accuracy_std": 0.0042,
    "threshold": 0.31,
    "auc": 0.99812,
    "tar_at_far": {"1e-2": 0.975, "1e-4": None},
    "pairs": 6000,
}


STEP = {
    "epoch": 0,
    "samples": 8,
    "samples_per_second": 900,
    "wait_percent": 2,
    "grad_norm": 1,
    "skipped_steps": 0,
}


def write_run(folder, steps=(), evaluations=()):
    with EventWriter(folder / "events.jsonl") as writer:
        writer.write(StartEvent(config={}, environment={}, world_size=1))
        for step, loss in steps:
            rate = 0.1 * (1 - step / 5000) ** 2
            writer.write(StepEvent(step=step, loss=loss, learning_rate=rate, time_s=step, **STEP))
        for event in evaluations:
            writer.write(event)
    return folder


def evaluation(step, name="a", metrics=None, roc=None):
    return EvaluationEvent(step=step, name=name, metrics=metrics or {}, roc=roc)


def roc(points=200):
    far = [0.0, *np.geomspace(1e-4, 1, points)]
    return {"far": far, "tar": [max(rate, 1e-5) ** 0.15 for rate in far]}


def is_drawn(path):
    """The picture has its size, and more on it than a frame."""
    pixels = imread(path)
    return pixels.shape[:2] == (500, 900) and (pixels[..., :3] < 0.9).any(axis=2).mean() > 0.01


def test_a_run_gives_both_pictures(tmp_path):
    steps = [(step, 40 * math.exp(-step / 900) + 2 + math.sin(step)) for step in range(10, 5000, 10)]
    scores = {at: METRICS | {"pair_accuracy": 0.9 + at / 60000} for at in range(500, 5001, 500)}
    evaluations = [evaluation(at, "glyphs", metrics, roc()) for at, metrics in scores.items()]
    pictures = draw_run(write_run(tmp_path, steps, evaluations))
    assert [path.name for path in pictures] == ["loss.png", "roc.png"]
    assert all(is_drawn(path) for path in pictures)


@pytest.mark.parametrize(
    ("steps", "evaluations"),
    [
        ([(1, 3.0)], [evaluation(1, "a", {"auc": None}, {"far": [1.0], "tar": [1.0]})]),
        ([(1, 3.0)], [evaluation(1, "a", {}, {"far": [0.0, 1.0], "tar": [1.0, 1.0]})]),
        ([(1, None), (2, None)], [evaluation(2, "a", METRICS, roc(3))]),
        ([(1, 3.0), (2, None), (3, 2.0)], [evaluation(2, n, {}, roc(9)) for n in "ab"]),
    ],
)
def test_few_points_are_drawn(tmp_path, steps, evaluations, recwarn):
    assert all(is_drawn(path) for path in draw_run(write_run(tmp_path, steps, evaluations)))
    assert not recwarn.list


def test_a_run_without_a_roc_has_no_roc_picture(tmp_path):
    evaluations = [evaluation(1, "a", {"top1": 0.5}), evaluation(1, "b", {}, {"far": [], "tar": []})]
    assert draw_run(write_run(tmp_path, [(1, 3.0)], evaluations)) == [tmp_path / "loss.png"]


def test_a_run_without_steps_is_refused(tmp_path):
    with pytest.raises(UserError, match="no step yet"):
        draw_run(write_run(tmp_path))


def rendered(table):
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


LABELLED = {"one_shot_5way": 0.9612, "genuine_pairs": 1000, "impostor_pairs": 9000}
SHOWN = [
    (
        {"one_shot_20way": 0.9612},
        ("Verification (6,000 pairs)", "98.57 % ± 0.42", "97.50 %", "0.99812", "0.3100"),
    ),
    ({"one_shot_20way": 0.9612}, ("20-way one-shot 96.12 %", "n/a (needs at least 10,000 impostor pairs)")),
    (LABELLED, ("5-way one-shot", "Verification (accuracy: 6,000 pairs; TAR and AUC: 10,000 pairs)")),
    ({"threshold_at_far": {"1e-2": 0.2512, "1e-4": None}}, ("TAR @ FAR 1e-2 (cosine 0.2512) 97.50 %",)),
    ({"auc": None, "threshold": None}, ("n/a (needs pairs of both kinds)", "threshold (cosine) n/a")),
]


@pytest.mark.parametrize(("changes", "parts"), SHOWN)
def test_what_evaluations_are_told_as(changes, parts):
    text = " ".join(rendered(verification_table(METRICS | changes)).split())
    assert all(part in text for part in parts) and text.count("-way") == sum("way" in key for key in changes)
    text = rendered(classification_table({"top1": 0.7615, "top5": 0.9287}))
    assert "76.15 %" in text and "92.87 %" in text


def test_the_curves_of_seeds_are_the_metric_where_all_evaluated_it_several_times_else_the_loss(tmp_path):
    def evaluated(*steps):
        return [evaluation(n, "a", {"top1": 0.1 * n + 0.01 * len(steps)}) for n in steps]

    for seed, evaluations in ((0, evaluated(1, 2)), (1, evaluated(1, 2, 3)), (2, evaluated(3))):
        (tmp_path / f"seed-{seed}").mkdir()
        write_run(tmp_path / f"seed-{seed}", [(1, 3.0), (2, None), (3, 2.0)], evaluations)
    runs = {seed: tmp_path / f"seed-{seed}" for seed in range(3)}
    curves, of = seed_curves({seed: runs[seed] for seed in (0, 1)}, "top1")
    assert of == "top1" and [*curves[0]] == [1, 2] and [*curves[1]] == [1, 2, 3]
    assert seed_curves(runs, "top1")[1] == "loss"
    rows = [row("stability", {"seed": s, "metric": "top1", "recipe": "tiny"}, 1.0) for s in range(3)]
    (path,) = draw_seeds(tmp_path, rows)
    assert imread(path).shape[:2] == (500, 900) and path.name == "curves.png"
    assert draw_seeds(tmp_path, [lost("stability", {}, "failed", "x")]) == []
