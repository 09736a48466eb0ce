"""`megaclass bench stability` as a user meets it: trainings in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import tiny
from megaclass import checkpoint
from megaclass.cli import main
from megaclass.results.events import StartEvent, StepEvent, read_events
from megaclass.results.rows import read_rows

pytestmark = pytest.mark.dist

STEPS = 8


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def bench(*words):
    return main(["bench", "stability", *map(str, words)])


def start(*words):
    """The same in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "megaclass", "bench", "stability", *map(str, words)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def starts(folder):
    return [event for event in read_events(folder / "events.jsonl") if isinstance(event, StartEvent)]


def test_three_seeds_end_in_a_table_and_a_picture(tmp_path, capsys):
    tiny.write_records(tmp_path / "records", classes=24)
    sections = {
        "schedule": {"steps": STEPS},
        "evaluate": {"task": "verification", "path": str(tmp_path / "records"), "pairs": 40, "every": 4},
    }
    recipe = tiny.recipe(tmp_path, run={"output": ""}, **sections)
    words = [recipe, "--seeds", "4,0,7", "--output", "study", "--optim.lr", 0.02]
    assert bench(*words) == 0
    said = capsys.readouterr().out
    rows = read_rows("study/rows.jsonl")
    assert [row.case["seed"] for row in rows] == [4, 0, 7] and {row.status for row in rows} == {"ok"}
    for row in rows:
        result = json.loads(Path(f"study/seed-{row.case['seed']}/result.json").read_text())
        assert row.case["metric"] == "pair_accuracy" and row.case["settings"]["optim.lr"] == 0.02
        assert row.result["pair_accuracy"] == result["verification"]["pair_accuracy"]
        assert row.result["final_loss"] == result["final_loss"] and row.result["seconds"] == result["seconds"]
        assert row.samples_per_second == result["samples_per_second"]
        assert row.environment == result["environment"]
        events = read_events(f"study/seed-{row.case['seed']}/events.jsonl")
        steps = [event for event in events if isinstance(event, StepEvent)]
        assert len(row.samples_ms) == len(steps) == STEPS
        assert row.samples_ms[1] == pytest.approx(12_000 / steps[1].samples_per_second, rel=1e-3)
    assert len({row.result["final_loss"] for row in rows}) == 3  # another seed is another training
    assert "seed 7 (3 of 3)" in said and "standard deviation" in said and "curves.png" in said
    assert (
        Path("study/curves.png").stat().st_size > 5000
        and "Global Step: 8" in Path("study/seed-7.log").read_text()
    )

    assert bench(*words) == 0  # nothing is left to do
    assert "3 of 3 seeds are in study already" in capsys.readouterr().out
    assert read_rows("study/rows.jsonl") == rows
    more = [recipe, "--seeds", "1", "--output", "study", "--optim.lr", 0.02]
    assert bench(*more) == 0  # of 0 alone, which is there
    assert "needs 2 seeds" in capsys.readouterr().out
    assert len(read_rows("study/rows.jsonl")) == 3


def stop(process, how):
    """Send the signal; what the study said, when it and its training are gone."""
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive  # no training outlives its study
    return errors


def test_a_study_that_is_killed_in_the_middle_goes_on(tmp_path, capsys):
    sections = {"run": {"output": "", "checkpoint_every": 5}, "schedule": {"steps": 150}}
    words = [tiny.recipe(tmp_path, **sections), "--seeds", "2", "--output", "study"]
    first, second = tmp_path / "study" / "seed-0", tmp_path / "study" / "seed-1"

    process = start(*words)
    wait_for(lambda: checkpoint.latest(first / "checkpoints") is not None, process)
    stop(process, signal.SIGKILL)
    assert not (first / "result.json").exists() and not read_rows("study/rows.jsonl")

    process = start(*words)
    wait_for(lambda: checkpoint.latest(second / "checkpoints") is not None, process)
    (errors,) = stop(process, signal.SIGINT).splitlines()
    assert process.returncode == 130 and "1 of 2 seeds are in study; the same command goes on" in errors
    assert not (second / "result.json").exists() and len(read_rows("study/rows.jsonl")) == 1

    assert bench(*words) == 0
    assert "1 of 2 seeds are in study already" in capsys.readouterr().out
    for run in (first, second):
        begun, resumed = starts(run)
        assert begun.resumed_from_step is None and resumed.resumed_from_step >= 5
        steps = [event.step for event in read_events(run / "events.jsonl") if isinstance(event, StepEvent)]
        assert steps == [*range(1, 151)]
    assert [(row.case["seed"], row.status) for row in read_rows("study/rows.jsonl")] == [(0, "ok"), (1, "ok")]


def test_a_seed_that_fails_is_a_row_and_the_others_go_on(tmp_path, capsys):
    recipe = tiny.recipe(tmp_path, run={"output": ""}, schedule={"steps": 3})
    assert bench(recipe, "--seeds", "1", "--output", "study") == 0
    (tmp_path / "study" / "seed-1").write_text("in the way")
    assert bench(recipe, "--seeds", "3", "--output", "study") == 0
    rows = read_rows("study/rows.jsonl")
    assert [(row.case["seed"], row.status) for row in rows] == [(0, "ok"), (1, "failed"), (2, "ok")]
    assert rows[1].reason == "run.output: study/seed-1 is a file; name a directory"
    assert "failed: run.output" in capsys.readouterr().out
    (tmp_path / "study" / "seed-1").unlink()
    assert bench(recipe, "--seeds", "3", "--output", "study") == 0  # what failed is tried again
    assert [(row.case["seed"], row.status) for row in read_rows("study/rows.jsonl")[3:]] == [(1, "ok")]


def test_a_study_of_which_nothing_is_left_says_so(tmp_path, capsys):
    recipe = tiny.recipe(tmp_path, run={"output": ""}, data={"path": str(tmp_path / "nowhere")})
    assert bench(recipe, "--seeds", "1") == 1
    (row,) = read_rows("runs/stability-tiny/rows.jsonl")
    assert row.status == "failed" and "nowhere" in row.reason and not row.samples_ms
    assert "none has it" in capsys.readouterr().out


def test_two_ranks_train_a_seed(tmp_path):
    recipe = tiny.recipe(tmp_path, run={"output": ""}, schedule={"steps": 4})
    assert bench(recipe, "--seeds", "1", "--world-size", 2, "--output", "study") == 0
    (row,) = read_rows("study/rows.jsonl")
    assert row.status == "ok", row.reason
    assert row.case["world_size"] == 2 and starts(tmp_path / "study" / "seed-0")[0].world_size == 2
    broken = ["--data.num_classes", 7, "--output", "broken", "-n", 2]
    assert bench(recipe, "--seeds", "1", *broken) == 1
    (row,) = read_rows("broken/rows.jsonl")
    assert row.reason.startswith("data.num_classes: 7")  # and not what torchrun says after it


def test_other_settings_in_the_same_directory_are_refused(tmp_path, capfd):
    recipe = tiny.recipe(tmp_path, run={"output": ""}, schedule={"steps": 2})
    assert bench(recipe, "--seeds", "1", "--output", "study") == 0
    capfd.readouterr()
    for words, part in [
        (["--optim.lr", "0.5"], "optim.lr 0.01, and now it is 0.5"),
        (["--world-size", "2"], "--world-size 1, and now it is 2"),
    ]:
        assert bench(recipe, "--seeds", "1", "--output", "study", *words) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and part in lines[0] and "study holds seeds" in lines[0]
    assert len(read_rows("study/rows.jsonl")) == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "recipe"),
        (["glyfs"], "did you mean 'glyphs'"),
        (["glyphs", "--seeds", "0"], "--seeds: 0"),
        (["glyphs", "--seeds", "1,1"], "twice"),
        (["glyphs", "--seeds", "few"], "--seeds: 'few'"),
        (["glyphs", "--world-size", "0"], "--world-size: 0"),
        (["glyphs", "--world-size", "3"], "does not divide into 3"),
        (["glyphs", "--run.seed", "3"], "--seeds"),
        (["glyphs", "--run.output", "here"], "--output"),
        (["glyphs", "--model.weights", "some.pt"], "--model.weights"),
        (["glyphs", "--schedule.epoch", "3"], "schedule.epochs"),
        (["glyphs", "--precision.compute", "tf32", "--run.device", "cpu"], "tf32"),
        (["glyphs", "--output", "notes.txt"], "notes.txt"),
        (["glyphs", "--output", "full"], "holds other files (notes.txt)"),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(words, part, capfd):
    Path("notes.txt").write_text("not a study\n")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("not a study\n")
    assert bench(*words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("megaclass: error: ") and part in lines[0]
    assert {path.name for path in Path().rglob("*")} <= {"notes.txt", "full", ".lock"}
