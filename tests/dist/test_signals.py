"""SIGTERM and its like: the step ends, a checkpoint is written, and the run can be started again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from megaclass import checkpoint
from megaclass.checkpoint import tensorfile
from megaclass.results.events import CheckpointEvent, EndEvent, StartEvent
from ranks import free_port, meeting, start_command

pytestmark = pytest.mark.dist

STEPS = 1500


def start(folder, ranks=1, words=(), before=None, **run):
    """Processes of a run that takes some seconds, and the files of what they say."""
    recipe = tiny.recipe(folder, schedule={"steps": STEPS}, run=run)
    port = free_port()
    errors = [folder / f"errors-{rank}.txt" for rank in range(ranks)]
    places = [meeting(rank, ranks, port) if ranks > 1 else {} for rank in range(ranks)]
    return [
        start_command(["train", recipe, *words], file, place, before=before)
        for file, place in zip(errors, places, strict=True)
    ], errors


def trains(folder, steps=20):
    """Wait until the run is at work."""
    log = folder / "run" / "events.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_bytes().count(b"\n") < steps:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(processes):
    began = time.monotonic()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes], time.monotonic() - began


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 75), ("SIGINT", 130)])
def test_a_signal_saves_the_step_and_ends_the_run(tmp_path, number, status):
    (process,), (errors,) = start(tmp_path)
    trains(tmp_path)
    os.kill(process.pid, signal.Signals[number])
    assert end([process])[0] == [status]
    (line,) = errors.read_text().splitlines()
    step = int(re.search(rf"ended by {number}, after step (\d+), which is saved: --resume goes on", line)[1])
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").name == f"step-{step:08d}"
    (ended,) = tiny.events(tmp_path / "run", EndEvent)
    assert number in ended.reason and ended.steps == step < STEPS
    (process,), _ = start(tmp_path, words=["--resume", "--schedule.steps", str(step + 5)])
    assert end([process])[0] == [0]
    assert tiny.events(tmp_path / "run", StartEvent)[-1].resumed_from_step == step


@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_rank_ends_both_after_the_same_step(tmp_path, told):
    processes, errors = start(tmp_path, ranks=2)
    trains(tmp_path)
    os.kill(processes[told].pid, signal.SIGTERM)
    assert end(processes)[0] == [75, 75], [file.read_text() for file in errors]
    assert re.search(r"after step \d+, which is saved", errors[0].read_text())
    assert errors[1].read_text() == ""


def on_a_slow_disk():
    as_it_is = tensorfile.write_tensors

    def late(*arguments):
        time.sleep(1.0)
        return as_it_is(*arguments)

    tensorfile.write_tensors = late


def is_saving(folder):
    deadline = time.monotonic() + 60
    while not [*folder.glob("run/checkpoints/.tmp-*")]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("grace_s", "said"), [(30, "which is saved"), (1, "no checkpoint could be finished within 1 s")]
)
def test_a_signal_in_the_middle_of_a_save(tmp_path, ranks, grace_s, said):
    """Two files of a second each are being written, and two more come: 30 s are enough for that, and one is not."""
    processes, errors = start(tmp_path, ranks, before=on_a_slow_disk, grace_s=grace_s, checkpoint_every=20)
    is_saving(tmp_path)
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    status, seconds = end(processes)
    assert status == [75] * ranks and seconds < grace_s + 2
    assert said in errors[0].read_text()
    for saved in checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints"):
        checkpoint.verify(saved)


def test_a_second_signal_ends_at_once(tmp_path):
    (process,), (errors,) = start(tmp_path, before=on_a_slow_disk, checkpoint_every=20)
    is_saving(tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(1.1)  # sooner it would be the same wish told twice
    os.kill(process.pid, signal.SIGINT)
    status, seconds = end([process])
    assert status == [75] and seconds < 1
    assert errors.read_text().splitlines() == ["megaclass: SIGTERM, and it came twice: ended without a new checkpoint"]


def test_a_signal_while_everything_is_loaded(tmp_path):
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "megaclass", "train", tiny.recipe(tmp_path)]
    process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == "megaclass: ended by SIGTERM, before its first step\n"
    assert process.returncode == 75


def test_what_was_ignored_stays_ignored(tmp_path):
    """As nohup starts a process."""
    (process,), _ = start(tmp_path, words=["--schedule.steps", "200"], before=without_hangup)
    trains(tmp_path)
    os.kill(process.pid, signal.SIGHUP)
    assert end([process])[0] == [0]


def without_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_run_saves_by_time(tmp_path):
    (process,), _ = start(tmp_path, words=["--schedule.steps", "200"], checkpoint_minutes=0.1 / 60, keep_last=100)
    assert end([process])[0] == [0]
    saved = tiny.events(tmp_path / "run", CheckpointEvent)
    assert len(saved) > 2 and saved[-1].step == 200 and all(event.stall_s for event in saved)
