"""What the doctor finds: faults by name with what to do, nothing where all is well, and never a traceback."""

import fcntl
import json
import shutil
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

import tiny
from megaclass import checkpoint
from megaclass.cli import main
from megaclass.config import from_mapping
from megaclass.doctor import machine, recipe, run
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, look
from megaclass.errors import UserError

DAMAGE = b"\x00broken\n"


@pytest.fixture
def quick(monkeypatch):
    """No machine is measured."""
    monkeypatch.setattr(machine, "_PROBES", {"machine": lambda: [Finding(OK, "machine", "a machine")]})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    words = ["train", tiny.recipe(folder, run={"checkpoint_every": 1}, schedule={"steps": 3})]
    assert main(words) == 0
    return folder


@pytest.fixture
def directory(finished, tmp_path):
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def bad(found):
    """Of the findings that are not ok: the mark, and what was looked at."""
    return [(finding.mark, finding.what) for finding in found if finding.mark != OK]


def test_a_recipe_that_can_start(tmp_path):
    assert bad(recipe.findings(tiny.config(tmp_path), ranks=2)) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "sections, ranks, found",
    [
        ({"data": {"path": "nowhere"}}, 1, (FAIL, "nowhere: no such file")),
        ({"data": {"num_classes": 7}}, 1, (FAIL, "has 6 classes")),
        ({"model": {"weights": "nowhere.pt"}}, 1, (FAIL, "nowhere.pt: no such file")),
        ({}, 5, (FAIL, "cannot be shared evenly by 5 ranks")),
        ({"evaluate": {"task": "verification", "path": "gone"}}, 1, (FAIL, "gone: no such file")),
        ({"run": {"checkpoint_minutes": 0.0}}, 1, (WARN, "nothing is saved before the end")),
    ],
)  # fmt: skip
def test_what_a_recipe_lacks(tmp_path, sections, ranks, found):
    config = from_mapping(sections, tiny.config(tmp_path))
    (one,) = [f for f in recipe.findings(config, ranks) if f.mark != OK]
    assert (one.mark, one.what) == (found[0], "settings") and found[1] in one.found and one.advice


def test_too_little_memory_and_room(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "available_memory", lambda: 100_000)
    monkeypatch.setattr(recipe.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    assert bad(recipe.findings(tiny.config(tmp_path), 1)) == [(FAIL, "memory"), (FAIL, "room")]


@pytest.mark.parametrize(
    "damaged, resume", [(0, (OK, "step-00000003")), (1, (OK, "step-00000002")), (3, (FAIL, "none"))]
)
def test_damaged_checkpoints_are_named_and_what_a_resume_would_do(directory, damaged, resume):
    names = [path.name for path in reversed(checkpoint.list_checkpoints(directory / "checkpoints"))]
    for name in names[:damaged]:
        weights = directory / "checkpoints" / name / "replicated.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    found = list(run.findings(directory, repair=False))
    assert [f.what for f in found if f.what in names] == names
    assert [f.what for f in found if f.mark != OK and "replicated.safetensors" in f.found] == names[:damaged]
    assert found[-1].what == "resume" and found[-1].mark == resume[0]
    assert found[-1].mark == FAIL or resume[1] in found[-1].found


def test_a_damaged_log_is_set_aside_where_that_is_asked_for(directory):
    log = directory / "events.jsonl"
    whole = log.read_bytes()
    assert bad(run.findings(directory, repair=True)) == [] and log.read_bytes() == whole
    lines = whole.splitlines(keepends=True)
    damaged = b"".join([*lines[:3], DAMAGE, *lines[3:]])
    log.write_bytes(damaged)
    (found,) = [finding for finding in run.findings(directory, repair=False) if finding.mark != OK]
    assert (found.mark, found.what) == (FAIL, "events.jsonl") and "line 4" in found.found
    with (directory / ".lock").open("w") as lock:  # of a run that goes on
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert bad(run.findings(directory, repair=True))[0] == (FAIL, "repair")
    assert log.read_bytes() == damaged
    assert bad(run.findings(directory, repair=True)) == [(WARN, "end")]  # it stood behind the damage
    assert log.read_bytes() == b"".join(lines[:3])
    assert (directory / "events.jsonl.damaged-1").read_bytes() == damaged


@pytest.mark.parametrize("reason, advice", [("", "killed"), ("ZeroDivisionError: 1", "--resume")])
def test_how_a_run_ended(directory, reason, advice):
    lines = (directory / "events.jsonl").read_text().splitlines()
    end = [json.dumps(json.loads(lines[-1]) | {"reason": reason})] if reason else []
    (directory / "events.jsonl").write_text("".join(f"{line}\n" for line in [*lines[:-1], *end]))
    (found,) = [finding for finding in run.findings(directory, repair=False) if finding.mark != OK]
    assert (found.mark, found.what) == (WARN, "end") and advice in found.advice


@pytest.mark.process
def test_a_machine_is_looked_at(tmp_path):
    found = list(machine.findings(tmp_path))
    assert {"PyTorch", "memory", "gloo", "decoding", "disk"} <= {finding.what for finding in found}
    assert FAIL not in {finding.mark for finding in found} and not list(tmp_path.iterdir())


def test_the_versions_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (oldest, newest) = machine.TORCH
    assert f"torch>={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}" in project["dependencies"]


def test_a_gpu_is_told_by_what_the_driver_knows(monkeypatch):
    def refuse(*arguments):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {"Init": lambda: None, "DeviceGetHandleByUUID": lambda uuid: 1}
    answers |= {"DeviceGetClockInfo": lambda *_: 1200, "DeviceGetMaxClockInfo": lambda *_: 1980}
    answers |= {"DeviceGetTotalEccErrors": refuse, "DeviceGetCurrentClocksThrottleReasons": lambda _: 0x44}
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", answer)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(79e9), int(80e9)))
    found = machine._gpu(0, SimpleNamespace(name="A GPU", uuid="u"))
    assert found.found == "A GPU, 79.0 GB free of 80.0 GB, 1200 of 1980 MHz"
    assert found.mark == WARN and "heat (hardware)" in found.advice


def test_a_probe_that_fails_or_hangs_is_a_finding():
    def fails():
        yield Finding(OK, "first", "there")
        raise ZeroDivisionError("division by zero\nin a library")

    def refuses():
        raise UserError("the disk is full; make room")

    assert bad(look("disk", 10, fails)) == [(FAIL, "disk")]
    assert [*look("disk", 10, refuses)] == [Finding(FAIL, "disk", "the disk is full", "make room")]
    assert bad(look("disk", 0.05, lambda: time.sleep(1) or [])) == [(WARN, "disk")]


def test_status_and_lines_of_a_pipe(told, quick, tmp_path, directory, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ["doctor", tiny.recipe(tmp_path)]
    assert main(words) == 0
    path = "x" * 100
    said = told(*words, "--data.path", path, status=1)
    (line,) = [line for line in said.splitlines() if line.startswith("fail")]
    assert path in line and line.endswith("class directories")
    assert "ok    step-00000003" in told("doctor", directory)
    wrong = [
        "glyfs",
        f"{tmp_path}/records",
        "glyphs --repair",
        "glyphs --ranks 0",
        f"{directory} --optim.lr 1",
    ]
    assert [main(["doctor", *words.split()]) for words in wrong] == [2] * 5
