"""Every write of a run's log and of the files beside it, refused by the disk in turn."""

import dataclasses
import errno
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import tiny
from megaclass.checkpoint import Saved
from megaclass.cli import main
from megaclass.errors import UserError
from megaclass.parallel.groups import World
from megaclass.report import curves
from megaclass.results import rundir
from megaclass.results.events import EndEvent, read_events
from megaclass.results.rundir import choose
from megaclass.train import log
from megaclass.train.job import build_job
from megaclass.train.log import RunLog
from megaclass.train.progress import Progress

ERRORS = itertools.cycle((errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT))
WORLD = World(0, 1, torch.device("cpu"))


class Disk:
    """Refuses the call number ``at`` of those that change ``folder``, and all later ones where it ``stays`` so. A write
    that is refused leaves half of its bytes; of every other line the disk takes half at first."""

    def __init__(self, folder, patch, at, stays):
        self.calls, self._folder, self._at, self._stays = 0, str(folder), at, stays
        self.error = next(ERRORS)
        self._open = io.open
        patch.setattr(io, "open", self.open)
        for name in ("fsync", "replace", "rename", "mkdir", "unlink"):
            patch.setattr(os, name, self.guarded(getattr(os, name)))

    def asked(self):
        self.calls += 1
        if self.calls == self._at or (self._stays and self.calls > self._at):
            raise OSError(self.error, os.strerror(self.error))

    def guarded(self, function):
        def call(*arguments, **options):
            if isinstance(arguments[0], int) or self._folder in str(arguments[0]):
                self.asked()
            return function(*arguments, **options)

        return call

    def open(self, file, mode="r", *arguments, **options):
        if mode[0] == "r" or self._folder not in str(file):
            return self._open(file, mode, *arguments, **options)
        self.asked()
        return File(self, self._open(file, mode, *arguments, **options))


class File:
    def __init__(self, disk, real):
        self._disk, self._real = disk, real

    def write(self, data):
        try:
            self._disk.asked()
        except OSError:
            self._real.write(data[: len(data) // 2])
            raise
        raw = isinstance(self._real, io.FileIO) and len(data) > 80
        return self._real.write(data[: len(data) // 2] if raw else data)

    def truncate(self, size):
        self._disk.asked()
        return self._real.truncate(size)

    def flush(self):
        self._disk.asked()
        return self._real.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._real.close()

    def __getattr__(self, name):
        return getattr(self._real, name)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return build_job(tiny.config(tmp_path_factory.mktemp("job")), WORLD)


def session(job, folder, resume, names):
    """Two steps of a run, without the training. Returns why its result cannot be written, or nothing."""
    config = tiny.config(folder.parent, run={"output": str(folder)})
    directory = choose(config, resume)
    with directory.locked():
        directory.write_config(config, names)
        progress = Progress(step=2 if resume else 0)
        with RunLog(job, directory, progress, resume) as run_log:
            for _ in range(2):
                progress.step += 1
                run_log.tell(0.1, torch.tensor(1.0))
        return directory.write_result({"names": names})


def contents(folder):
    found = {name: folder / name for name in ("config.toml", "classes.txt", "result.json")}
    return {name: path.read_bytes() for name, path in found.items() if path.exists()}


@pytest.mark.parametrize(
    ("resume", "damaged"), [(False, False), (True, False), (True, True)], ids=["new", "resumed", "damaged"]
)
@pytest.mark.parametrize("stays", [False, True])
def test_every_write_that_the_disk_refuses_is_survived_or_told_in_one_line(
    job, tmp_path, monkeypatch, capsys, resume, damaged, stays
):
    folder, before = tmp_path / "run", tmp_path / "before"
    monkeypatch.setattr(log, "snapshot", dict)  # it takes time

    def run(at):
        """What the session says, what of it is an error, and how often the disk was asked."""
        shutil.rmtree(folder, ignore_errors=True)
        if resume:
            shutil.copytree(before, folder)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            disk = Disk(folder, patch, at, stays)
            try:
                line = session(job, folder, resume, ["new"])
            except UserError as error:
                line = str(error)
        return capsys.readouterr().out, line, disk.calls

    if resume:
        assert session(job, folder, False, ["old"]) == ""
        folder.rename(before)
        (before / ".result.json.part").write_text("half")
        kept = read_events(before / "events.jsonl")
        if damaged:
            with (before / "events.jsonl").open("a") as file:
                file.write("damage\n")
    said, line, calls = run(10**9)
    assert line == "" and said.count("Warning") == damaged and calls > 25
    old, new, survived = contents(before), contents(folder), 0
    for at in range(1, calls + 1):
        said, line, _ = run(at)
        known = rf"(run\.output: cannot write into {folder}|{folder}/result\.json: cannot be written)[^\n]*"
        assert not line or re.fullmatch(known, line), at
        warnings = [line for line in said.splitlines() if line.startswith("Warning: ")]
        assert len(warnings) <= 2 + damaged, at
        survived += bool(warnings)
        assert all(text in (old.get(name), new[name]) for name, text in contents(folder).items()), at
        path, aside = folder / "events.jsonl", folder / "events.jsonl.damaged-1"
        if damaged:
            left = aside if aside.exists() else path
            assert left.read_bytes() == (before / "events.jsonl").read_bytes(), at
        elif resume:
            assert read_events(path)[: len(kept)] == kept, at
        assert session(job, folder, path.exists(), ["new"]) == ""
        assert contents(folder) == new and not [*folder.glob(".*.part")], at
        assert isinstance(read_events(path)[-1], EndEvent)
    assert survived > 5


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


@pytest.mark.parametrize("refused", ["__init__", "add_scalar", "close"])
def test_tensorboard_that_cannot_write_is_a_warning(job, tmp_path, monkeypatch, capsys, refused):
    class SummaryWriter:
        def __init__(self, *_, **__):
            self.asked("__init__")

        def __getattr__(self, name):
            return lambda *_: self.asked(name)

        def asked(self, name):
            if name == refused:
                raise OSError(errno.ENOSPC, "No space left on device")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    config = dataclasses.replace(job.config, run=dataclasses.replace(job.config.run, tensorboard=True))
    assert session(dataclasses.replace(job, config=config), tmp_path / "run", False, ["a"]) == ""
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: "))
    assert warning.startswith("Warning: TensorBoard cannot be written ([Errno 28] No space left on device)")


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
