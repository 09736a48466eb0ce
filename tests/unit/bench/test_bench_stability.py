"""`megaclass bench stability`: what a study makes of the runs of its seeds, and what a user sees."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import tiny
from megaclass import checkpoint
from megaclass.bench import stability
from megaclass.cli import main
from megaclass.config import from_mapping, load_recipe
from megaclass.errors import UserError
from megaclass.results.events import EventWriter, StartEvent, StepEvent, read_events
from megaclass.results.rows import read_rows
from megaclass.results.rundir import RunDirectory

RECIPE = load_recipe("resnet50_imagenet")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def bench(*words):
    return main(["bench", "stability", *map(str, words)])


def test_a_number_of_seeds_or_a_list():
    assert stability.seeds("5") == [0, 1, 2, 3, 4] and stability.seeds("3, 7,9") == [3, 7, 9]


def test_a_case_holds_what_was_published_of_one():
    changed = {"data": {"path": "images", "global_batch_size": 1536}, "schedule": {"epochs": 250.0},
               "augment": {"mixup": 0.3}, "evaluate": {"every": 7}, "run": {"device": "cpu"}}  # fmt: skip
    case = stability.first_case(from_mapping(changed, RECIPE), RECIPE, 1).parameters()
    assert case["settings"] == {"augment.mixup": 0.3} and case["precision"] in ("fp32", "bf16")
    assert (case["epochs_trained"], case["global_batch_size"], case["metric"]) == (250, 1536, "top1")
    steps = from_mapping({"schedule": {"steps": 9}, "run": {"device": "cpu"}}, RECIPE)
    case = stability.first_case(steps, RECIPE, 1)
    assert case.epochs_trained is None and case.settings == {"schedule.steps": 9}


def test_rates_of_one_metric_are_told_apart():
    verification = {
        "pair_accuracy": 0.9,
        "tar_at_far": {"1e-2": 0.8, "1e-4": None},
        "name": "lfw",
        "others": {"x": {}},
    }
    result = {"verification": verification, "final_loss": None, "seconds": 1.0, "steps": 1}
    assert stability.flat_result(result) == {
        "pair_accuracy": 0.9, "tar_at_far_1e-2": 0.8, "tar_at_far_1e-4": None, "final_loss": None, "seconds": 1.0,
        "steps": 1,
    }  # fmt: skip


def test_how_far_a_training_is_stands_in_its_events(tmp_path):
    events = tmp_path / "events.jsonl"
    assert stability._share_done(events) == 0
    start = {"event": "start", "total_steps": 40}
    lines = [
        start,
        {"event": "step", "step": 9},
        {"event": "step", "step": 10},
        {"event": "checkpoint", "step": 10},
    ]
    events.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "step", "ste')
    assert stability._share_done(events) == 0.25
