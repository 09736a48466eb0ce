"""What seeds say together, and their curves in one picture."""

import math

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from megaclass.report.seed_curves import curves_of, draw_seeds, mean_curve
from megaclass.report.stability import spread, stability_tables, time_text
from megaclass.results.events import EvaluationEvent, EventWriter, StartEvent, StepEvent
from megaclass.results.rows import Row

CASE = {"recipe": "resnet50_imagenet", "seed": 0, "metric": "top1", "epochs_trained": 50.0, "precision": "fp16",
        "global_batch_size": 1536, "device": "cuda", "world_size": 8, "settings": {"augment.mixup": 0.2}}  # fmt: skip


def row(seed, top1, seconds=5400.0, **more):
    result = {"top1": top1, "final_loss": 2.0 + seed / 10, "seconds": seconds}
    return Row(implementation="megaclass", benchmark="stability", case=CASE | {"seed": seed} | more, status="ok",
               result=result, samples_per_second=1000.0)  # fmt: skip


FAILED = Row(
    implementation="megaclass", benchmark="stability", case=CASE | {"seed": 3}, status="failed", reason="x"
)


def printed(rows, capsys):
    Console(width=120).print(stability_tables(rows))
    return capsys.readouterr().out.splitlines()


def test_the_deviation_is_that_of_a_sample():
    found = spread([0.76, 0.77, 0.78])
    assert (found.count, found.mean) == (3, pytest.approx(0.77)) and found.deviation == pytest.approx(0.01)
    assert (found.minimum, found.maximum) == (0.76, 0.78)
    assert spread([1.0]).deviation is None


def test_the_published_shape(capsys):
    lines = printed([row(0, 0.7623), row(1, 0.7644), FAILED, row(2, 0.7633)], capsys)
    assert lines[0].strip() == "resnet50_imagenet, fp16, global batch 1536, cuda, 8 ranks, augment.mixup 0.2"
    assert lines[4].split() == ["3", "failed"]
    assert (
        " ".join(lines[8].split()) == "epochs seeds average standard deviation minimum maximum time to train"
    )
    assert lines[9].split() == ["50", "3", "76.33", "0.105", "76.23", "76.44", "90.00", "min"]


def test_one_seed_has_no_deviation_and_none_no_table(capsys):
    assert "needs 2 seeds" in printed([row(0, 0.76), FAILED], capsys)[-1]
    assert "none has it" in printed([FAILED], capsys)[-1]
    assert "none has it" in printed([row(0, None)], capsys)[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (12.34, "12.3 s"), (150.0, "2.50 min"), (5400.0, "90.00 min"), (9000.0, "2.50 h")],
)
def test_times(seconds, text):
    assert time_text(seconds) == text


def write_run(folder, seed, steps=40, evaluations=0):
    folder = folder / f"seed-{seed}"
    folder.mkdir()
    with EventWriter(folder / "events.jsonl") as writer:
        writer.write(StartEvent(config={}, environment={}, world_size=1))
        for step in range(1, steps + 1):
            loss = None if step == 3 and seed == 1 else 5 * math.exp(-step / 20) + 0.1 * seed
            writer.write(StepEvent(step=step, epoch=0, samples=step, loss=loss, learning_rate=0.1,
                                   samples_per_second=9.0, wait_percent=0.0, grad_norm=1.0, skipped_steps=0,
                                   time_s=1.0))  # fmt: skip
        for number in range(1, evaluations + 1):
            for name in ("lfw", "cfp"):
                top1 = 0.1 * number + 0.01 * seed if name == "lfw" else 0.0
                writer.write(EvaluationEvent(step=10 * number, name=name, metrics={"top1": top1}))
    return folder


def test_the_metric_is_drawn_where_all_seeds_have_it_several_times(tmp_path):
    runs = {seed: write_run(tmp_path, seed, evaluations=4) for seed in (0, 1)}
    curves, name = curves_of(runs, "top1")
    assert name == "top1" and [*curves[1]] == [10, 20, 30, 40] and curves[1][20] == pytest.approx(0.21)
    assert mean_curve(curves)[40] == pytest.approx(0.405)
    path = draw_seeds(tmp_path / "curves.png", runs, [row(0, 0.4), row(1, 0.41)])
    pixels = imread(path)
    assert pixels.shape[:2] == (500, 900) and len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 50


def test_else_the_loss_is_drawn(tmp_path):
    runs = {0: write_run(tmp_path, 0, evaluations=4), 1: write_run(tmp_path, 1, steps=30, evaluations=1)}
    curves, name = curves_of(runs, "top1")
    assert name == "loss" and len(curves[0]) == 40 and math.isnan(curves[1][3])
    mean = mean_curve(curves)
    assert [*mean] == [*range(1, 31)] and math.isnan(mean[3])
    assert mean[10] == pytest.approx(5 * math.exp(-0.5) + 0.05)
    assert draw_seeds(tmp_path / "curves.png", runs, [row(0, 0.4), row(1, 0.41)]).exists()


def test_runs_without_a_step_are_not_drawn(tmp_path):
    runs = {0: write_run(tmp_path, 0, steps=0)}
    assert draw_seeds(tmp_path / "curves.png", runs, [row(0, 0.4)]) is None
    assert not (tmp_path / "curves.png").exists()
