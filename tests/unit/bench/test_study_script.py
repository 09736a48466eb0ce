"""benchmarks/study.py beside a trainer that only says that it has trained, and the page of its tables."""

import importlib.util
import os
import signal
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
if words.get("head.m2") == "0.4" and "resume" not in words:
    time.sleep(60 * (seed == 7))
    sys.exit(1)
found = {"samples_per_second": 9.0, "environment": {"cpu": "C"}, "steps": 5, "final_loss": 1.0, "seconds": 120.0}
found |= {"time_to_train_s": 130.0, "verification": {"pair_accuracy": 0.9 + seed / 50}}
(run / "result.json").write_text(json.dumps(found))
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("study", SCRIPT)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    Path("trainer.py").write_text(TRAINER)
    variants = {
        "first": {},
        "second": {"head.m2": 0.4, "model.weights": "{run:first}"},
        "third": {"head.m2": 0.2},
    }
    study.STUDIES = study.STUDIES | {
        "made": ("glyphs", {"schedule.steps": 5}, variants, {"pair_accuracy": "pairs"})
    }
    study.ROWS, study.TRAIN = tmp_path, [sys.executable, "trainer.py"]
    return study


def test_what_is_done_is_passed_over_and_what_has_begun_goes_on(study, tmp_path, capsys):
    def called(**options):
        Path("calls").write_text("")
        status = study.train("made", seeds=(0, 1), **options)
        return status, Path("calls").read_text().splitlines()

    status, calls = called(parallel=2)
    assert status == 2 and len(calls) == 6 and "FAILED" in capsys.readouterr().out
    first, second = (study.Run("made", name, 1) for name in ("first", "second"))
    assert first.directory.exists() and not study.Run("made", "third", 1).directory.exists()
    status, calls = called(only="second")  # what it starts from is there
    assert status == 0 and len(calls) == 2 and f'"model.weights": "{first.directory}"' in calls[1]
    assert all('"resume"' in call for call in calls) and called() == (0, [])
    rows = {(row.case["variant"], row.case["seed"]): row for row in read_rows(tmp_path / "study-made.jsonl")}
    assert len(rows) == 6 and rows["first", 1].result["cpu_seconds"] > 0
    row = rows["second", 1]
    assert row.key == second.key and row.case["settings"]["head.m2"] == 0.4 and row.case["threads"] >= 1
    assert row.result["cpu_seconds"] is None and row.result["pair_accuracy"] == 0.92
    assert "| second | 91.00 ± 1.41 | 2 | 2.00 ± 0.00 |  |  |" in study.table("made")
    study.STUDIES["made"][2]["third"]["head.m2"] = 0.3  # another variant by the same name
    assert "third" not in study.table("made") and called(only="third")[0] == 0


@pytest.mark.process
def test_a_killed_study_leaves_no_training_and_goes_on(study):
    if (pid := os.fork()) == 0:
        study.train("made", only="second", seeds=(7,))
    while not Path("calls").exists() or not Path("calls").read_text().endswith("\n"):
        time.sleep(0.02)
    (training,) = psutil.Process(pid).children()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    training.wait(timeout=20)
    assert study.train("made", only="second", seeds=(7,)) == 0


def test_the_tables_of_the_page_are_those_of_the_rows(study, monkeypatch):
    written = study.PAGE.read_text(encoding="utf-8")
    assert {name for _, name, _ in study.PLACE.findall(written)} == study.STUDIES.keys() - {"made"}
    monkeypatch.setattr(study, "PAGE", Path("page.md"))
    monkeypatch.setattr(study, "ROWS", SCRIPT.parent / "results")
    Path("page.md").write_text(written, encoding="utf-8")
    study.main(["--tables"])
    assert Path("page.md").read_text(encoding="utf-8") == written
