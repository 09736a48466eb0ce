"""What the doctor finds: faults by name with what to do, nothing where all is well, and never a traceback."""

import fcntl
import json
import re
import shutil
import time
import tomllib
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

import tiny
from megaclass.cli import main
from megaclass.config import from_mapping
from megaclass.doctor import machine, recipe, run
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, look
from megaclass.errors import UserError
from megaclass.parallel.groups import World
from megaclass.train.job import build_job
from megaclass.train.memory import memory_of

DAMAGE = b"\x00broken\n"


@pytest.fixture
def quick(monkeypatch):
    """No machine is measured."""
    monkeypatch.setattr(machine, "_PROBES", {"machine": lambda facts: [Finding(OK, "machine", "a machine")]})


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


# -- recipes -------------------------------------------------------------------------------------------


def test_a_recipe_that_can_start(tmp_path):
    config = tiny.config(tmp_path)
    assert bad(recipe.findings(config, ranks=2)) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "sections, ranks, found",
    [
        ({"data": {"path": "nowhere"}}, 1, (FAIL, "settings", "nowhere: no such file")),
        ({"data": {"num_classes": 7}}, 1, (FAIL, "settings", "has 6 classes")),
        ({"model": {"weights": "nowhere.pt"}}, 1, (FAIL, "settings", "nowhere.pt: not a PyTorch file")),
        ({}, 5, (FAIL, "settings", "cannot be shared evenly by 5 ranks")),
        ({"evaluate": {"task": "verification", "path": "gone"}}, 1, (FAIL, "settings", "gone: no such file")),
        ({"schedule": {"warmup": 1.0}}, 1, (WARN, "settings", "warm-up takes all 10 steps")),
        ({"run": {"checkpoint_minutes": 0.0}}, 1, (WARN, "settings", "nothing is saved before the end")),
    ],
)  # fmt: skip
def test_what_a_recipe_lacks(tmp_path, sections, ranks, found):
    base = tiny.config(tmp_path)
    mark, what, text = found
    (one,) = [f for f in recipe.findings(from_mapping(sections, base), ranks) if f.mark != OK]
    assert (one.mark, one.what) == (mark, what) and text in one.found and one.advice


def test_too_little_memory_and_room(tmp_path, monkeypatch):
    config = tiny.config(tmp_path)
    monkeypatch.setattr(recipe, "available_memory", lambda: 100_000)
    monkeypatch.setattr(recipe.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    assert bad(recipe.findings(config, 1)) == [(FAIL, "memory"), (WARN, "host memory"), (FAIL, "room")]


def test_damaged_images_and_small_classes(tmp_path):
    tiny.write_records(tmp_path / "records", samples=1)
    records = tmp_path / "records" / "train.rec"
    records.write_bytes(records.read_bytes().replace(b"\xff\xda", b"\xff\x00"))
    config = tiny.config(tmp_path)
    assert bad(recipe.findings(config, 1)) == [(FAIL, "images"), (WARN, "classes")]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"head": {"storage": "bf16", "sample_rate": 0.5}, "optim": {"name": "lars", "ema_decay": 0.9}},
        {"head": {"storage": "int8_rowwise"}, "precision": {"compute": "bf16"}},
        {"head": {"kind": "linear"}, "optim": {"momentum": 0.0}, "precision": {"compute": "bf16"}},
    ],
)
def test_the_memory_is_that_of_a_job(tmp_path, sections):
    base = tiny.config(tmp_path)
    config = from_mapping(sections, from_mapping({"head": {"scale": 64.0}}, base))
    job = build_job(config, World(0, 1, torch.device("cpu")))

    def size(tensors):
        return sum(t.nbytes for t in tensors if t.is_floating_point() or t.dtype == torch.int8)

    found = memory_of(config, job.backbone, classes=job.num_classes, compute=job.arithmetic.compute)
    linear = config.head.kind == "linear"
    weights = size([*job.backbone.state_dict().values(), *(job.head.state_dict().values() if linear else ())])
    assert found.weights == weights
    assert found.optimizer == size(
        t for state in job.optimizer.state.values() for t in state.values() if t is not None
    )
    assert found.average == (weights if job.average else 0)
    moved = sum(p.numel() for p in job.backbone.parameters() if p.requires_grad)
    assert found.casts == (2 * moved if job.arithmetic.compute == "bf16" else 0)
    if not linear:
        shard = job.head.shard
        assert found.centres == size(shard.centres.tensors.values())
        assert found.momentum == (size(shard.momentum.tensors.values()) if shard.momentum else 0)
        assert found.owed == (shard._debts.touched_C.nbytes if shard._debts else 0)


# -- runs ----------------------------------------------------------------------------------------------


def test_a_sound_run(directory):
    found = list(run.findings(directory, repair=True))
    assert bad(found) == []
    assert [finding.what for finding in found if finding.what.startswith("step-")] == [
        "step-00000003",
        "step-00000002",
    ]


def test_a_damaged_checkpoint_is_named_and_the_one_before_would_be_used(directory):
    weights = directory / "checkpoints" / "step-00000003" / "replicated.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = {finding.what: finding for finding in run.findings(directory, repair=False)}
    assert bad(found.values()) == [(FAIL, "step-00000003")]
    assert "replicated.safetensors" in found["step-00000003"].found
    assert re.match(r"from step-00000002 of 3 steps, in about 0:00:0\d at", found["resume"].found)


def test_what_a_kill_leaves_is_removed_where_that_is_asked_for(directory):
    left = [directory / ".result.json.part", directory / "checkpoints" / ".tmp-step-00000004"]
    left[0].write_text("half")
    left[1].mkdir()
    assert bad(run.findings(directory, repair=False)) == [(WARN, "left over")] * 2
    assert all(path.exists() for path in left)
    with (directory / ".lock").open("w") as lock:  # of a run that goes on these are none
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert bad(run.findings(directory, repair=True)) == [] and left[1].exists()
    assert bad(run.findings(directory, repair=True)) == []
    assert not any(path.exists() for path in left)


def test_a_damaged_log_is_set_aside_where_that_is_asked_for(directory):
    log = directory / "events.jsonl"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = b"".join([*lines[:3], DAMAGE, *lines[3:]])
    log.write_bytes(damaged)
    (found,) = [finding for finding in run.findings(directory, repair=False) if finding.mark != OK]
    assert (found.mark, found.what) == (FAIL, "events.jsonl") and "line 4" in found.found
    assert log.read_bytes() == damaged
    assert bad(run.findings(directory, repair=True)) == [(WARN, "end")]  # it stood behind the damage
    assert log.read_bytes() == b"".join(lines[:3])
    assert (directory / "events.jsonl.damaged-1").read_bytes() == damaged
    log.write_bytes(whole + b'{"event": "st')
    assert bad(run.findings(directory, repair=False)) == [(WARN, "events.jsonl")]
    assert bad(run.findings(directory, repair=True)) == [] and log.read_bytes() == whole


@pytest.mark.parametrize(
    "reason, advice",
    [
        ("", "killed"),
        ("LostRankError: rank 1 stops", "start it again"),
        ("ZeroDivisionError: 1", "traceback"),
    ],
)
def test_how_a_run_ended(directory, reason, advice):
    lines = (directory / "events.jsonl").read_text().splitlines()
    end = [json.dumps(json.loads(lines[-1]) | {"reason": reason})] if reason else []
    (directory / "events.jsonl").write_text("".join(f"{line}\n" for line in [*lines[:-1], *end]))
    (found,) = [finding for finding in run.findings(directory, repair=False) if finding.mark != OK]
    assert (found.mark, found.what) == (WARN, "end") and advice in found.advice


# -- machines, and the command ---------------------------------------------------------------------------


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

    answers = {"Init": lambda: None, "DeviceGetHandleByUUID": lambda uuid: 1, "DeviceGetPowerUsage": refuse}
    answers |= {"DeviceGetClockInfo": lambda *_: 1200, "DeviceGetMaxClockInfo": lambda *_: 1980}
    answers |= {
        "DeviceGetMemoryInfo": lambda _: SimpleNamespace(free=79e9),
        "DeviceGetTotalEccErrors": refuse,
    }
    answers |= {"DeviceGetCurrentClocksThrottleReasons": lambda _: 0x44}
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", answer)
    properties = namedtuple("Properties", "name major minor uuid total_memory")("A GPU", 9, 0, "u", 80e9)
    found = machine._gpu(0, properties)
    assert found.found == "A GPU, compute capability 9.0, 79.0 GB free of 80.0 GB, 1200 of 1980 MHz"
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


def test_status_and_lines_of_a_pipe(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ["doctor", tiny.recipe(tmp_path)]
    assert main(words) == 0
    path = "x" * 100
    assert main([*words, "--data.path", path]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert path in line and line.endswith("class directories")
    assert main(["doctor", "glyfs"]) == 1 and "did you mean 'glyphs'" in capsys.readouterr().out
    for wrong in (["glyphs", "--repair"], ["glyphs", "--ranks", "-1"], ["glyphs", "--run.outputt", "x"]):
        assert main(["doctor", *wrong]) == 2


def test_a_run_without_its_configuration_is_still_looked_at(quick, directory, capsys):
    (directory / "config.toml").write_text("not TOML")
    assert main(["doctor", str(directory)]) == 1
    out = capsys.readouterr().out
    assert "fail  config.toml" in out and "ok    step-00000003" in out
