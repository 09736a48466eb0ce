"""What `megaclass job` writes, given to a real SLURM of two nodes on this machine. `make slurm-test` installs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from megaclass.cli import main
from megaclass.results import published
from megaclass.results.events import EndEvent, StartEvent, StepEvent
from megaclass.results.rows import read_rows
from slurm import cluster

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not cluster.HERE, reason="no SLURM, or not root: make slurm-test installs it"),
]
STEPS = 600
SITE = """
scheduler = "slurm"
setup = ['export PATH="{path}:$PATH" PYTHONPATH="{modules}" OMP_NUM_THREADS=1 DISK="{disk}/$SLURMD_NODENAME"']
local = "DISK"
[nodes.cpu]
1 = []
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with cluster.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def submit(slurm, tmp_path, monkeypatch, capsys):
    """Write a script and submit it; returns the number of the job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    program = tmp_path / "bin" / "megaclass"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m megaclass "$@"\n')
    program.chmod(0o755)
    path, modules = f"{program.parent}:{Path(sys.executable).parent}", os.pathsep.join(filter(None, sys.path))
    Path("site.toml").write_text(SITE.format(path=path, modules=modules, disk=tmp_path))

    def submitted(*words):
        assert main(["job", *words, "--site", "site.toml", "--devices", "1", "--submit"]) == 0
        return capsys.readouterr().out.split()[-1]

    return submitted


def say(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def tensors(run):
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    return {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


def test_a_run_told_to_end_before_the_limit_is_queued_again_and_ends_as_if_nothing_had_been(submit, tmp_path):
    recipe = tiny.recipe(tmp_path, schedule={"steps": STEPS}, run={"log_every": 10, "track": "none"})
    words = ("--nodes", "2", "--stage", str(tmp_path / "records"))
    whole, told = (tmp_path / name / "run" for name in ("whole", "told"))
    submit(recipe, *words, "--output", "whole")
    cluster.wait_until(lambda: not say("squeue", "-h"), 200)
    assert tiny.events(whole, StartEvent)[0].world_size == 2

    job = submit(recipe, *words, "--output", "told")
    cluster.wait_until(lambda: (told / "events.jsonl").exists() and tiny.events(told, StepEvent), 60)
    say("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@120 does
    cluster.wait_until(lambda: "Restarts=1" in say("scontrol", "show", "job", job), 60)
    (end,) = tiny.events(told, EndEvent)
    assert "SIGUSR1" in end.reason and 0 < end.steps < STEPS
    # SLURM waits two minutes; a job that comes back within the second has its old credential, and is refused.
    say("scontrol", "update", f"JobId={job}", "StartTime=now+5")
    cluster.wait_until(lambda: not say("squeue", "-h"), 200)

    assert [event.resumed_from_step for event in tiny.events(told, StartEvent)] == [0, end.steps]
    assert len(tensors(whole)) > 1 and tensors(told) == tensors(whole)
    log = (tmp_path / "told" / f"{job}.log").read_text()
    assert log.count("stage-in took") == 4  # two nodes, two starts
    assert {path.parent.name for path in tmp_path.glob("n*/records")} == {"n1", "n2"}


def test_a_suite_is_an_array_whose_rows_are_collected_into_one_report(submit, tmp_path):
    submit("suite", "resnet50-abci", "--fit", "--minutes", "0.1", "--output", "suite")
    cluster.wait_until(lambda: not say("squeue", "-h"), 600)
    assert len(list((tmp_path / "suite").glob("*.log"))) == len(published.load("resnet50-abci").cases()) == 8
    rows = [row for number in range(1, 9) for row in read_rows(tmp_path / "suite" / f"rows-{number}.jsonl")]
    assert {row.status for row in rows} == {"ok", "skipped"}
    page = (tmp_path / "suite" / "report.md").read_text()
    assert all(f"rows-{number}.jsonl#L1" in page for number, row in enumerate(rows, 1) if row.status == "ok")
