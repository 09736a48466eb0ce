"""Who may write into a run directory, and that its files are there whole or as they were."""

import errno
import os
from pathlib import Path

import pytest

from megaclass.config import from_mapping
from megaclass.errors import UserError
from megaclass.results.rundir import RunDirectory, choose, write_whole

NAMES = ["a", "two\nlines\n", "", "back\\nslash\r", os.fsdecode(b"\xff\x1b[2J"), "\u2028"]


@pytest.fixture
def config(tmp_path):
    return from_mapping({"recipe": "tiny", "run": {"output": str(tmp_path / "run")}})


@pytest.fixture
def fsynced(monkeypatch):
    """The names, at the time of the call, of what is flushed to the disk."""
    found, fsync = [], os.fsync

    def noted(descriptor):
        found.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return found


def test_what_a_run_leaves_is_on_the_disk_before_it_has_its_name(tmp_path, config, fsynced):
    directory = choose(config, resume=False)
    with directory.locked():
        directory.write_config(config, NAMES)
        assert directory.write_result({"steps": 1}) == ""
    names = ("config.toml", "classes.txt", "result.json")
    assert fsynced == [name for file in names for name in (f".{file}.part", "run")]


@pytest.mark.parametrize("names", [NAMES, ["only"], None])
def test_names_of_classes_come_back_as_they_were(config, names):
    directory = choose(config, resume=False)
    with directory.locked():
        directory.write_config(config, names)
    assert directory.read_classes() == names
    if names:
        assert directory.classes.read_bytes().count(b"\n") == len(names)


def test_names_of_earlier_runs_and_of_an_editor_that_leaves_the_last_line_open(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb")
    assert RunDirectory(tmp_path).read_classes() == ["a", "b"]


def test_a_start_that_finds_another_run_under_the_lock_changes_nothing(config):
    late_start = choose(config, resume=False)
    directory = choose(config, resume=False)
    with directory.locked():
        directory.write_config(config, None)
        with pytest.raises(UserError, match="another process is training in"), late_start.locked():
            pass
        late_resume = choose(config, resume=True)
        directory.events.write_text("a step\n")
    before = directory.config.read_bytes()
    for late in (late_start, late_resume):
        with (
            pytest.raises(UserError, match=r"has trained in .* meanwhile; start again to go on"),
            late.locked(),
        ):
            late.write_config(config, ["changed"])
    assert directory.config.read_bytes() == before and not directory.classes.exists()
    with choose(config, resume=True).locked():
        pass


def test_a_file_system_without_locks_is_trained_on(config, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no locks")))
    with choose(config, resume=False).locked():
        pass


def test_what_a_killed_process_has_not_finished_goes_with_the_next_start(config):
    directory = choose(config, resume=False)
    directory.path.mkdir()
    left = [directory.path / f".{name}.part" for name in ("config.toml", "result.json", "loss.png")]
    for path in left:
        path.write_text("half")
    with choose(config, resume=False).locked():
        assert [path.name for path in directory.path.iterdir()] == [".lock"]


@pytest.mark.parametrize("refused", ["open", "fsync"])
def test_a_directory_that_cannot_be_written_is_told(config, monkeypatch, refused):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    directory = choose(config, resume=False)
    monkeypatch.setattr(*((Path, "open") if refused == "open" else (os, "fsync")), full)
    told = "run.output: cannot write into .*: No space left on device; make room"
    with pytest.raises(UserError, match=told), directory.locked():
        directory.write_config(config, None)


@pytest.mark.parametrize("refused", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_is_left_as_it_was(tmp_path, monkeypatch, refused):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, refused, lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_whole(path, "new")
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
