"""benchmarks/study.py beside a trainer that only says that it has trained, and the page of its tables."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from megaclass.results.rows import read_rows

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "study.py"
TRAINER = """
import json, pathlib, sys, time
words = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
run, seed = pathlib.Path(words["run.output"]), int(words["run.seed"])
print(json.dumps(words), file=open("calls", "a"), flush=True)
run.mkdir(exist_ok=True)
if "model.weights" in words and "resume" not in words:
    sys.exit(time.sleep(60 * (seed == 7)) or 1)
found = {"samples_per_second": 9.0, "environment": {"cpu": "C"}, "steps": 5, "final_loss": 1.0, "seconds": 120.0}
found |= {"time_to_train_s": 130.0, "verification": {"pair_accuracy": 0.9 + seed / 50}}
(run / "result.json").write_text(json.dumps(found))
"""


@pytest.fixture
def study(tmp_path):
    spec = importlib.util.spec_from_file_location("study", SCRIPT)
    spec.loader.exec_module(study := importlib.util.module_from_spec(spec))
    variants = {"first": {}, "second": {"model.weights": "{run:first}"}, "third": {"head.m2": 0.2}}
    made = "glyphs", {"schedule.steps": 5}, variants, {"pair_accuracy": "pairs"}
    study.STUDIES, study.ROWS = study.STUDIES | {"made": made}, tmp_path
    study.TRAIN = [sys.executable, "-c", TRAINER]
    return study


def test_what_is_done_is_passed_over_and_what_has_begun_goes_on(study):
    calls, (first, second, third) = (
        Path("calls"),
        (study.Run("made", name, 1) for name in study.STUDIES["made"][2]),
    )
    assert study.train("made", seeds=(0, 1), parallel=2) == 2 and len(calls.read_text().splitlines()) == 6
    assert first.directory.exists() and not third.directory.exists()
    calls.write_text("")
    assert [study.train("made", only="second", seeds=(0, 1)), study.train("made", seeds=(0, 1))] == [0, 0]
    again = calls.read_text().splitlines()
    assert len(again) == 2 and f'"model.weights": "{first.directory}"' in again[1] and '"resume"' in again[1]
    rows = {row.key: row for row in read_rows("study-made.jsonl")}
    assert len(rows) == 6 and rows[first.key].result["cpu_seconds"] > 0 == rows[first.key].case["seed"] - 1
    assert rows[second.key].result["cpu_seconds"] is None and rows[second.key].result["pair_accuracy"] == 0.92
    assert "| second | 91.00 ± 1.41 | 2 | 2.00 ± 0.00 |  |  |" in study.table("made")
    study.STUDIES["made"][2]["third"]["head.m2"] = 0.3  # another variant by the same name
    assert "third" not in study.table("made")


@pytest.mark.process
def test_a_killed_study_leaves_no_training_and_goes_on(study):
    if (pid := os.fork()) == 0:
        study.train("made", only="second", seeds=(7,))
    while not (Path("calls").exists() and Path("calls").read_text()):
        time.sleep(0.02)
    (training,) = psutil.Process(pid).children()
    psutil.Process(pid).kill()
    training.wait(timeout=20)
    os.waitpid(pid, 0)
    assert study.train("made", only="second", seeds=(7,)) == 0


def test_the_tables_of_the_page_are_those_of_the_rows(study):
    written = study.PAGE.read_text(encoding="utf-8")
    assert {name for _, name, _ in study.PLACE.findall(written)} == study.STUDIES.keys() - {"made"}
    study.PAGE, study.ROWS = Path("page.md"), SCRIPT.parent / "results"
    study.PAGE.write_text(written, encoding="utf-8")
    study.main(["--tables"])
    assert study.PAGE.read_text(encoding="utf-8") == written
