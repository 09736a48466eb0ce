"""Parts of a study: its cases, its rows, how far it is, and why a training failed."""

import json
from dataclasses import replace

import pytest

from megaclass.bench.old_stability import seeds as study_of_seeds
from megaclass.bench.old_stability.cases import seeds
from megaclass.bench.old_stability.record import flat_result
from megaclass.bench.old_stability.study import Study, plan, prepare
from megaclass.bench.old_stability.training import command, reason
from megaclass.config import from_mapping, load_recipe
from megaclass.errors import UserError
from megaclass.results.events import EventWriter, StartEvent, StepEvent
from megaclass.results.rows import read_rows

RECIPE = load_recipe("resnet50_imagenet")


def study(folder, seeds=(0, 1, 2), world_size=1, **sections) -> Study:
    config = from_mapping({"run": {"device": "cpu"}} | sections, RECIPE)
    return plan(config, RECIPE, [*seeds], world_size, str(folder))


def trained(study, seed):
    """What a training of the seed leaves."""
    run = study.run_of(seed)
    run.path.mkdir()
    event = {"epoch": 0, "samples": 1, "loss": 2.0, "learning_rate": 0.1, "wait_percent": 0.0, "grad_norm": 1.0,
             "skipped_steps": 0}  # fmt: skip
    with EventWriter(run.events) as writer:
        writer.write(StartEvent(config={}, environment={}, world_size=study.world_size))
        for step in (1, 2):
            speed = study.case.global_batch_size * step
            writer.write(StepEvent(step=step, samples_per_second=speed, time_s=step, **event))
    run.write_result(
        {"steps": 2, "seconds": 3.0, "samples_per_second": 9.0, "final_loss": 2.0, "environment": {"cpu": "x"},
         "classification": {"top1": 0.5 + seed / 10, "top5": 0.9}}
    )  # fmt: skip


def test_a_number_of_seeds_or_a_list():
    assert seeds("5") == [0, 1, 2, 3, 4] and seeds("3, 7,9") == [3, 7, 9]


@pytest.mark.parametrize("text", ["", "0", "1001", "-3", "1.5", "1,,2", "2,2", "a"])
def test_what_is_no_list_of_seeds(text):
    with pytest.raises(UserError, match="--seeds: "):
        seeds(text)


def test_a_case_holds_what_was_published_of_one():
    changed = {"data": {"path": "images", "global_batch_size": 1536}, "schedule": {"epochs": 250.0},
               "augment": {"mixup": 0.3}, "evaluate": {"every": 7}}  # fmt: skip
    case = study("there", **changed).case_of(2).parameters()
    assert case["settings"] == {"augment.mixup": 0.3}
    assert (case["epochs_trained"], case["global_batch_size"], case["metric"]) == (250, 1536, "top1")
    assert case["seed"] == 2 and case["precision"] in ("fp32", "bf16") and case["image_size"] == 224
    steps = study("there", schedule={"steps": 9}).case
    assert steps.epochs_trained is None and steps.settings == {"schedule.steps": 9}


def test_rows_follow_from_what_the_runs_left(tmp_path):
    plan = study(tmp_path)
    prepare(plan)
    trained(plan, 1)
    found = study_of_seeds.kept(plan)  # killed before it could write the row
    assert found.keys() == {1} and read_rows(plan.rows_file) == [found[1]]
    assert study_of_seeds.kept(plan) == found and len(read_rows(plan.rows_file)) == 1
    row = found[1]
    assert row.samples_ms == [1000.0, 500.0] and row.step_ms["p50"] == 750
    assert row.samples_per_second == 9 and row.environment == {"cpu": "x"}
    assert row.result == {"top1": 0.6, "top5": 0.9, "final_loss": 2.0, "seconds": 3.0, "steps": 2}


def test_rates_of_one_metric_are_told_apart():
    verification = {
        "pair_accuracy": 0.9,
        "tar_at_far": {"1e-2": 0.8, "1e-4": None},
        "name": "lfw",
        "others": {"x": {}},
    }
    result = {"verification": verification, "final_loss": None, "seconds": 1.0, "steps": 1}
    assert flat_result(result) == {
        "pair_accuracy": 0.9, "tar_at_far_1e-2": 0.8, "tar_at_far_1e-4": None, "final_loss": None, "seconds": 1.0,
        "steps": 1,
    }  # fmt: skip


def test_seeds_are_trained_in_order_and_the_time_left_is_told(tmp_path):
    plan = study(tmp_path, seeds=(3, 1, 2, 0))
    prepare(plan)
    trained(plan, 1)
    now, told = 0.0, []

    class Watcher:
        def begins(self, number, total, seed):
            told.append((number, total, seed))

        def step(self, step, total, left_s):
            told.append(left_s)

    def training(study, seed, on_step):
        nonlocal now
        for step, total, then in [(0, None, 5.0), (10, 30, 10.0), (20, 30, 12.0)]:  # slow at first
            now += then - (now % 100)
            on_step(step, total)
        now += 100 - now % 100
        if seed == 2:
            return "no luck"
        trained(study, seed)
        return ""

    done = study_of_seeds.kept(plan)
    rows = list(study_of_seeds.run(plan, done, Watcher(), training, clock=lambda: now))
    assert [(row.case["seed"], row.status, row.reason) for row in rows] == [
        (3, "ok", ""), (2, "failed", "no luck"), (0, "ok", ""),
    ]  # fmt: skip
    # 10 steps of 0.2 s, and two more seeds: of 30 such steps each, or as long as the first took
    assert told[:4] == [(1, 4, 3), None, None, pytest.approx(2 + 2 * 6)]
    assert told[4:8] == [(3, 4, 2), None, None, pytest.approx(2 + 100)]
    assert told[8:] == [(4, 4, 0), None, None, pytest.approx(2)]
    assert read_rows(plan.rows_file)[1:] == rows


def test_a_run_that_has_begun_is_resumed(tmp_path):
    plan = study(tmp_path, world_size=2)
    prepare(plan)
    words = command(plan, 1)
    assert "--resume" not in words and words[words.index("--nproc-per-node") + 1] == "2"
    run = plan.run_of(1)
    run.path.mkdir()
    run.events.touch()  # killed before it had written its configuration
    assert "--resume" not in command(plan, 1) and not run.path.exists()
    run.path.mkdir()
    run.config.touch()
    assert command(plan, 1)[-1] == "--resume" and run.config.exists()


def test_a_result_that_is_none_is_refused(tmp_path):
    plan = study(tmp_path)
    prepare(plan)
    trained(plan, 0)
    plan.run_of(0).result.write_text(json.dumps([1]))
    with pytest.raises(UserError, match="not the result of a run"):
        study_of_seeds.kept(plan)


def test_a_study_of_another_recipe_is_refused(tmp_path):
    plan = study(tmp_path)
    prepare(plan)
    prepare(plan)
    with pytest.raises(UserError, match="recipe 'resnet50_imagenet', and now it is 'mine'"):
        prepare(replace(plan, config=replace(plan.config, recipe="mine")))


@pytest.mark.parametrize(
    ("status", "lines", "expected"),
    [
        (2, ["Training: ..", "megaclass: error: optim.lr: -1 is below 0", "====", "Root Cause"],
         "optim.lr: -1 is below 0"),
        (1, ["[rank1]: Traceback", "[rank1]: RuntimeError: lost", "torch.distributed.errors.ChildFailedError: ", "=="],
         "RuntimeError: lost"),
        (1, ["ChildFailedError: ", "  traceback : Signal 9 (SIGKILL) received by PID 12", "==="],
         "a rank was killed by SIGKILL"),
        (-9, ["Training: .."], "killed by SIGKILL"),
        (3, ["last words", ""], "ended with exit status 3: last words"),
        (3, [], "ended with exit status 3"),
    ],
)  # fmt: skip
def test_why_a_training_failed(status, lines, expected):
    assert reason(status, lines) == expected
