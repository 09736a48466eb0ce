"""SIGKILL at any moment: the resumed run ends with the bits of one that was never interrupted.

A kill in each moment of a save is in tests/unit/checkpoint/test_checkpoint_kills.py.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

import tiny
from megaclass import checkpoint
from megaclass.results.events import CheckpointEvent, EndEvent, StartEvent, StepEvent, read_events
from ranks import start_command

pytestmark = pytest.mark.dist

STEPS, EVERY = 90, 3
SETTINGS = {
    "run": {"checkpoint_every": EVERY},
    "model": {"dropout": 0.2},
    "head": {"sample_rate": 0.5},
    "schedule": {"steps": STEPS},
    "augment": {"rotate_degrees": 10.0},
}


def start(folder, *words):
    """A training process of its own, and the file of what it says."""
    recipe, errors = tiny.recipe(folder, **SETTINGS), folder / "errors.txt"
    return start_command(["train", recipe, *words], errors), errors


def finish(process, errors):
    process.join()
    assert process.exitcode == 0, errors.read_text()


def wait_for(process, condition):
    while not condition():
        assert process.is_alive(), "it finished before it was killed"
        time.sleep(0.0005)


def bits(run):
    """Backbone, centres and the momentum of both after the last step, as they lie in the files."""
    last = checkpoint.latest(run / "checkpoints")
    assert last.name == f"step-{STEPS:08d}"
    return {file.name: file.read_bytes() for file in last.glob("*.safetensors")}


def events(run, kind):
    return [event for event in read_events(run / "events.jsonl") if isinstance(event, kind)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    finish(*start(folder))
    return folder / "run"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed three times, and the steps of the checkpoints that it was resumed from."""
    folder = tmp_path_factory.mktemp("killed")
    run, moments = folder / "run", random.Random(0)
    words, resumed_from, latest = [], [], None
    for _ in range(3):
        process, _ = start(folder, *words)
        wait_for(process, lambda before=latest: checkpoint.latest(run / "checkpoints") != before)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        words, latest = ["--resume"], checkpoint.latest(run / "checkpoints")
        resumed_from.append(int(latest.name.removeprefix("step-")))
    finish(*start(folder, *words))
    return run, resumed_from


def test_the_end_is_the_same_to_the_bit(whole, killed):
    run, _ = killed
    assert len(bits(whole)) == 2 and bits(run) == bits(whole)


def test_the_events_are_those_of_one_run(whole, killed):
    run, resumed_from = killed
    assert [event.resumed_from_step for event in events(run, StartEvent)] == [None, *resumed_from]
    assert [event.reason for event in events(run, EndEvent)] == ["finished"]
    told = [(event.step, event.loss) for event in events(run, StepEvent)]
    assert [step for step, _ in told] == list(range(1, STEPS + 1))
    assert told == [(event.step, event.loss) for event in events(whole, StepEvent)]
    # A kill may fall between a checkpoint and its event.
    saved = [event.step for event in events(run, CheckpointEvent)]
    assert saved == sorted({*saved})
    assert set(range(EVERY, STEPS + 1, EVERY)) - {*resumed_from} <= {*saved}


def test_nothing_unfinished_is_left(killed):
    run, _ = killed
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        f"step-{STEPS - EVERY:08d}",
        f"step-{STEPS:08d}",
    ]
