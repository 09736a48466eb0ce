"""benchmarks/study.py beside a trainer that only says that it has trained, and the page of its tables."""

import importlib.util
import os
import re
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
TRAINER = f"""
import shutil, sys, time
words = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
print(words, file=open("calls", "a"), flush=True)
shutil.copytree("{ROOT}/tests/fixtures/earlier/margin-fp32", words["run.output"], dirs_exist_ok=True)
if "model.weights" in words and "resume" not in words:
    shutil.os.unlink(words["run.output"] + "/result.json")
    sys.exit(time.sleep(60 * (words["run.seed"] == "7")) or 1)
"""


@pytest.fixture
def study(tmp_path):
    spec = importlib.util.spec_from_file_location("study", ROOT / "benchmarks" / "study.py")
    spec.loader.exec_module(study := importlib.util.module_from_spec(spec))
    variants = {"first": {}, "second": {"model.weights": "{run:first}"}}
    study.STUDIES["made"] = "glyphs", {"evaluate.task": "none"}, variants, {"final_loss": "loss"}
    study.ROWS, study.TRAIN[1:] = tmp_path, ["-c", TRAINER]
    return study


def test_what_is_done_is_passed_over_and_what_has_begun_goes_on(study):
    first, second = (study.Run("made", name, 1) for name in ("first", "second"))
    assert study.train("made", seeds=(0, 1), parallel=2) == 2
    assert [study.train("made", only=name, seeds=(0, 1)) for name in ("second", "")] == [0, 0]
    assert first.directory.exists() and not second.directory.exists()
    calls, rows = Path("calls").read_text().splitlines(), study.read_rows("study-made.jsonl")
    assert [len(calls), len(rows)] == [6, 4] and f"'{first.directory}'" in calls[-1] and "resume" in calls[-1]
    assert "| second | 43.27 ± 0.00 | 2 | 108.87 ± 0.00 |  |\n" in study.table("made")
    study.STUDIES["made"][2]["second"] = {"head.m2": 0.3}  # another variant by the same name
    table = study.table("made")
    assert "second" not in table and "| first | 43.27 ± 0.00 | 2 |" in table
    assert re.search(r"\d ± \d\.\d\d \|\n", table)  # its CPU time


@pytest.mark.process
def test_a_killed_study_leaves_no_training(study):
    if (pid := os.fork()) == 0:
        os._exit(study.train("made", only="second", seeds=(7,)))
    while not (Path("calls").exists() and Path("calls").read_text()):
        time.sleep(0.02)
    (training,) = psutil.Process(pid).children()
    os.kill(pid, 9)
    training.wait(timeout=20)
    os.waitpid(pid, 0)


def test_every_variant_is_accepted_and_the_page_is_that_of_the_rows(study):
    assert all(study.Run(name, one, 0).case() for name, what in study.STUDIES.items() for one in what[2])
    study.ROWS = ROOT / "benchmarks/results"
    assert study.written() == study.PAGE.read_text(encoding="utf-8")
