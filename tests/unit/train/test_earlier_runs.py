"""Runs that the code before the redrawing wrote are resumed and evaluated."""

import shutil
from pathlib import Path

import pytest

import tiny
from megaclass.cli import main
from megaclass.results.events import StartEvent, StepEvent

EARLIER = Path(__file__).parents[2] / "fixtures" / "earlier"
SCORES = {
    "linear": 1 / 6,
    "margin-fp32": 0.9707,
    "margin-bf16": 0.9701,
    "margin-int8_rowwise": 0.9878,
    "margin-sampled-ema": 0.9610,
}


@pytest.fixture(params=SCORES)
def earlier(request, tmp_path):
    """A run directory, beside its data."""
    shutil.copytree(EARLIER / "records", tmp_path / "records")
    return Path(shutil.copytree(EARLIER / request.param, tmp_path / request.param))


def test_it_is_resumed(earlier, tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text('[data]\nsource = "records"\npath = "elsewhere"\n')
    words = ["train", str(tmp_path / "tiny.toml"), "--resume", "--run.output", str(earlier)]
    words += ["--data.path", str(tmp_path / "records")]
    assert main([*words, "--schedule.steps", "8"]) == 0
    starts, steps = tiny.events(earlier, StartEvent), tiny.events(earlier, StepEvent)
    assert [start.resumed_from_step for start in starts][1:] == [6]
    assert [start.total_steps for start in starts] == [None, 8]
    assert [step.step for step in steps] == [*range(1, 9)]
    assert max(step.loss for step in steps[6:]) < steps[0].loss  # it has not begun anew
    assert "optim.lr stays 0.01 as the run has it" in capsys.readouterr().out


def test_it_is_evaluated(earlier, tmp_path):
    """With the scores that the code of its time gives."""
    kind = "classification" if earlier.name == "linear" else "verification"
    words = [kind, tmp_path / "records", "--run-dir", earlier, *["--evaluate.pairs", "40"] * (kind == "verification")]
    found = tiny.evaluated(tmp_path, *words)
    score = found["top1" if kind == "classification" else "auc"]
    assert score == pytest.approx(SCORES[earlier.name], abs=2e-3)
