"""`megaclass bench stability`: what a study makes of the runs of its seeds, and what a user sees."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import tiny
from megaclass import checkpoint
from megaclass.bench import stability
from megaclass.cli import main
from megaclass.config import from_mapping, load_recipe
from megaclass.errors import UserError
from megaclass.results.events import StartEvent, StepEvent
from megaclass.results.rows import read_rows

RECIPE = load_recipe("resnet50_imagenet")
STEPS = 8


def bench(*words):
    return main(["bench", "stability", *map(str, words)])


# -- parts --------------------------------------------------------------------------------------------


def test_a_number_of_seeds_or_a_list():
    assert stability.seeds([5]) == [0, 1, 2, 3, 4] and stability.seeds([3, 7, 9]) == [3, 7, 9]


def test_a_case_holds_what_was_published_of_one():
    changed = {"data": {"path": "images", "global_batch_size": 1536}, "schedule": {"epochs": 250.0},
               "augment": {"mixup": 0.3}, "evaluate": {"every_epochs": 7.0}, "run": {"device": "cpu"}}  # fmt: skip
    case = stability.case_of(from_mapping(changed, RECIPE), RECIPE, 3, 8)
    assert case.settings == {"augment.mixup": 0.3} and case.precision in ("fp32", "bf16")
    assert (case.seed, case.world_size, case.metric, case.image_size) == (3, 8, "top1", 224)
    assert (case.epochs_trained, case.global_batch_size, case.data) == (250, 1536, "images")
    steps = from_mapping({"schedule": {"steps": 9}, "run": {"device": "cpu"}}, RECIPE)
    case = stability.case_of(steps, RECIPE, 0, 1)
    assert case.epochs_trained is None and case.settings == {"schedule.steps": 9}


def test_rates_of_one_metric_are_told_apart():
    verification = {"pair_accuracy": 0.9, "tar_at_far": {"1e-2": 0.8, "1e-4": None}, "others": {"x": {}}}
    rest = {"final_loss": None, "seconds": 1.0, "time_to_train_s": 1.5, "steps": 1}
    expected = {"pair_accuracy": 0.9, "tar_at_far_1e-2": 0.8, "tar_at_far_1e-4": None} | rest
    assert stability.flat_result({"verification": verification} | rest) == expected


# -- the command --------------------------------------------------------------------------------------


@pytest.mark.process
def test_seeds_end_in_a_table_and_a_picture(refused, tmp_path, capfd):
    """One study of two seeds; then what is asked of it again, and what is refused."""
    tiny.write_records(tmp_path / "records", classes=24)
    sections = {
        "schedule": {"steps": STEPS},
        "evaluate": {"task": "verification", "path": str(tmp_path / "records"), "pairs": 40, "every": 4},
    }
    recipe = tiny.recipe(tmp_path, run={"output": ""}, **sections)
    words = [recipe, "--seeds", "4,0", "--output", "study", "--optim.lr", 0.02]
    assert bench(*words) == 0
    said = capfd.readouterr().out
    rows = read_rows("study/rows.jsonl")
    assert [(row.case["seed"], row.status) for row in rows] == [(4, "ok"), (0, "ok")]
    for row in rows:
        run = Path(f"study/seed-{row.case['seed']}")
        result = json.loads((run / "result.json").read_text())
        assert row.case["metric"] == "pair_accuracy" and row.case["settings"]["optim.lr"] == 0.02
        assert row.result["pair_accuracy"] == result["verification"]["pair_accuracy"]
        assert row.result["final_loss"] == result["final_loss"] and row.result["seconds"] == result["seconds"]
        assert row.samples_per_second == result["samples_per_second"]
        assert row.environment == result["environment"]
        steps = tiny.events(run, StepEvent)
        assert len(row.samples_ms) == len(steps) == STEPS
        assert row.samples_ms[1] == pytest.approx(12_000 / steps[1].samples_per_second, rel=1e-3)
    assert len({row.result["final_loss"] for row in rows}) == 2  # another seed is another training
    assert "Standard deviation" in said and "seed 0" in said and "picture   study/curves.png" in said
    assert Path("study/curves.png").stat().st_size > 5000
    assert "Global Step: 8" in Path("study/seed-0.log").read_text()

    assert bench(*words) == 0  # nothing is left to do
    assert "2 of 2 cases are in study/rows.jsonl already" in capfd.readouterr().out
    assert read_rows("study/rows.jsonl") == rows
    # Killed between its end and its row: a run that is done is read, not trained again.
    case = stability.case_of(load_recipe("study/recipe.toml"), load_recipe(recipe), 4, 1)
    training = stability.Training(case, tiny.world(), "megaclass", {"directory": "study"})
    answer = training.turn(0)
    assert answer["samples_ms"] == rows[0].samples_ms and len(tiny.events(Path("study/seed-4"), StartEvent)) == 1
    Path("study/seed-4/result.json").write_text("[1]")
    with pytest.raises(UserError, match=r"seed-4/result\.json: not the result of a run; remove study/seed-4"):
        training.turn(0)
    for more, part in [
        (["--optim.lr", "0.5"], "study holds seeds with optim.lr 0.02, and now it is 0.5"),
        (["--world-size", "2"], "(seed 4) 1, and now it is 2"),
    ]:
        refused(["bench", "stability", *words, *more], part)
    assert read_rows("study/rows.jsonl") == rows


@pytest.mark.process
def test_a_study_that_is_killed_goes_on_and_a_seed_that_fails_is_a_row(tmp_path, capsys):
    sections = {"run": {"output": "", "checkpoint_every": 5}, "schedule": {"steps": 100}}
    words = [tiny.recipe(tmp_path, **sections), "--seeds", "2", "--output", "study"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "megaclass", "bench", "stability", *words]
    study = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    run, end = Path("study/seed-0"), time.monotonic() + 90
    while checkpoint.latest(run / "checkpoints") is None:
        assert study.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    children = psutil.Process(study.pid).children(recursive=True)
    study.kill()
    study.wait()
    assert children and not psutil.wait_procs(children, timeout=30)[1]  # no training outlives its study
    assert not (run / "result.json").exists() and not read_rows("study/rows.jsonl")

    Path("study/seed-1").write_text("in the way")
    assert bench(*words) == 0
    begun, resumed = tiny.events(run, StartEvent)
    assert begun.resumed_from_step is None and resumed.resumed_from_step >= 5
    assert [event.step for event in tiny.events(run, StepEvent)] == [*range(1, 101)]
    done, failed = read_rows("study/rows.jsonl")
    assert (done.status, failed.status) == ("ok", "failed"), done.reason
    assert failed.reason == "run.output: study/seed-1 is a file; name a directory"
    assert "failed: run.output" in capsys.readouterr().out


@pytest.mark.process
def test_two_ranks_train_a_seed(tmp_path):
    recipe = tiny.recipe(tmp_path, run={"output": ""}, schedule={"steps": 3})
    assert bench(recipe, "--seeds", "1", "--output", "study", "-n", 2) == 0
    (row,) = read_rows("study/rows.jsonl")
    assert row.status == "ok", row.reason
    assert row.case["world_size"] == tiny.events(Path("study/seed-0"), StartEvent)[0].world_size == 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "recipe"),
        (["glyfs"], "did you mean 'glyphs'"),
        (["glyphs", "--seeds", "0"], "--seeds: 0"),
        (["glyphs", "--seeds", "few"], "--seeds: 'few'"),
        (["glyphs", "--seeds=-1,2"], "--seeds: -1"),
        (["glyphs", "--run.seed", "3"], "--seeds"),
        (["glyphs", "--run.output", "here"], "--output"),
        (["glyphs", "--precision.compute", "tf32", "--run.device", "cpu"], "tf32"),
        (["glyphs", "--output", "notes.txt"], "notes.txt"),
        (["glyphs", "--output", "full"], "holds other files (notes.txt)"),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(refused, words, part):
    Path("notes.txt").write_text("not a study\n")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("not a study\n")
    assert not refused(["bench", "stability", *words], part)
