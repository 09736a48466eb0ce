"""Logs, pictures and results that cannot be written; tests/faults refuses every call of a run in turn."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from megaclass.checkpoint import Saved
from megaclass.cli import main
from megaclass.report import curves
from megaclass.results import rundir
from megaclass.results.events import read_events
from megaclass.results.rundir import choose
from megaclass.train.log import RunLog
from megaclass.train.progress import Progress


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return tiny.job(tmp_path_factory.mktemp("job"))


def test_a_directory_that_is_moved_away_keeps_its_log_and_the_end_says_what_was_not_written(job, tmp_path):
    config, moved = tiny.config(tmp_path), tmp_path / "moved"
    directory, progress = choose(config, resume=False), Progress()
    with directory.locked():
        directory.write_config(config, None)
        with RunLog(job, directory, progress, False) as run_log:
            kept = Saved(1, directory.checkpoints / "step-00000001", None, 0.0, 0.1, 100)
            run_log.saved(kept)
            directory.path.rename(moved)
            progress.step = 1
            run_log.tell(0.1, torch.tensor(1.0))
            run_log.saved(kept)
            run_log.saved(kept)
    events = [type(event).__name__ for event in read_events(moved / "events.jsonl")]
    assert events[-6:] == [
        *("CheckpointEvent", "StepEvent"),
        *("CheckpointEvent", "WarningEvent", "CheckpointEvent", "EndEvent"),
    ]
    message = f"{directory.result}: cannot be written (No such file or directory)"
    assert directory.write_result({}).startswith(message) and not directory.path.exists()


@pytest.mark.parametrize(("recipe", "status"), [("tiny.toml", 0), ("nowhere.toml", 2)])
def test_the_status_is_that_of_the_work_where_all_that_is_said_is_lost(tmp_path, recipe, status):
    tiny.recipe(tmp_path, schedule={"steps": 1})
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "megaclass", "train", str(tmp_path / recipe)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, stdout=full, stderr=full, env=environment, check=False)
    assert done.returncode == status and (tmp_path / "run/loss.png").exists() == (status == 0)


@pytest.mark.parametrize(
    ("module", "file", "status", "told"),
    [
        (rundir, "result.json", 2, "run/result.json: cannot be written (No space left on device)"),
        (curves, "loss.png", 0, "no pictures: No space left on device"),
    ],
)
def test_the_numbers_are_told_where_files_of_the_end_cannot_be_written(
    tmp_path, monkeypatch, capsys, module, file, status, told
):
    as_it_is = rundir.write_whole

    def write_whole(path, content, errors="strict"):
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        as_it_is(path, content, errors)

    monkeypatch.setattr(module, "write_whole", write_whole)
    assert main(["train", tiny.recipe(tmp_path, schedule={"steps": 1})]) == status
    said, errors = capsys.readouterr()
    assert re.search(r"^1 steps, [\d.]+ s, ", said, re.MULTILINE)
    assert (said + errors).count(told) == 1 and len(errors.splitlines()) == (status == 2)
    assert not (tmp_path / "run" / file).exists()
