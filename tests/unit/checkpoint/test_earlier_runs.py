"""Runs that the code before the redrawing wrote (tests/fixtures/earlier) are read and continued."""

import shutil
from pathlib import Path

import pytest

from megaclass import checkpoint
from megaclass.cli import main
from megaclass.results.events import StartEvent, StepEvent, read_events

EARLIER = Path(__file__).parents[2] / "fixtures" / "earlier"


@pytest.mark.parametrize(
    "name", ["linear", "margin-bf16", "margin-fp32", "margin-int8_rowwise", "margin-sampled-ema"]
)
def test_an_earlier_run_goes_on(tmp_path, monkeypatch, name):
    shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "earlier" / name
    before = [event.loss for event in read_events(run / "events.jsonl") if isinstance(event, StepEvent)]
    words = ["train", str(run / "config.toml"), "--run.output", str(run)]
    assert main([*words, "--resume", "--schedule.steps", "8"]) == 0
    events = read_events(run / "events.jsonl")
    assert [event.resumed_from_step for event in events if isinstance(event, StartEvent)] == [None, 6]
    losses = [event.loss for event in events if isinstance(event, StepEvent)]
    assert len(losses) == 8 and losses[:6] == before
    assert checkpoint.load(checkpoint.latest(run / "checkpoints")).step == 8
