"""Every write of a run's log and of the files beside it, refused by the disk in turn."""

import errno
import io
import itertools
import os
import re
import shutil

import pytest
import torch

import tiny
from megaclass.errors import UserError
from megaclass.parallel.groups import World
from megaclass.results.events import EndEvent, read_events
from megaclass.results.rundir import choose
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
        with RunLog(job, directory, progress, resume) as log:
            for _ in range(2):
                progress.step += 1
                log.tell(0.1, torch.tensor(1.0))
        return directory.write_result({"names": names})


def contents(folder):
    found = {name: folder / name for name in ("config.toml", "classes.txt", "result.json")}
    return {name: path.read_bytes() for name, path in found.items() if path.exists()}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("stays", [False, True])
def test_every_write_that_the_disk_refuses_is_survived_or_told_in_one_line(
    job, tmp_path, monkeypatch, capsys, resume, stays
):
    folder, before = tmp_path / "run", tmp_path / "before"

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
    said, line, calls = run(10**9)
    assert line == "" and "Warning" not in said and calls > 25
    old, new, survived = contents(before), contents(folder), 0
    for at in range(1, calls + 1):
        said, line, _ = run(at)
        known = rf"(run\.output: cannot write into {folder}|{folder}/result\.json: cannot be written)[^\n]*"
        assert not line or re.fullmatch(known, line), at
        warnings = [line for line in said.splitlines() if line.startswith("Warning: ")]
        assert len(warnings) <= 2, at
        survived += bool(warnings)
        assert all(text in (old.get(name), new[name]) for name, text in contents(folder).items()), at
        path = folder / "events.jsonl"
        events = read_events(path) if path.exists() else []
        if resume:
            kept = read_events(before / "events.jsonl")
            assert events[: len(kept)] == kept, at
        assert session(job, folder, path.exists(), ["new"]) == ""
        assert contents(folder) == new and not [*folder.glob(".*.part")], at
        assert isinstance(read_events(path)[-1], EndEvent)
    assert survived > 5
