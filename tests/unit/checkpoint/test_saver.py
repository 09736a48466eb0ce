"""Saves beside the training: what they hold, how they end, and when there is no room for them."""

import shutil
import threading
from collections import namedtuple

import pytest
import torch

from checkpoint_cases import IDENTITY, head, same
from megaclass import checkpoint
from megaclass.checkpoint import Saver, saver


@pytest.fixture
def beside(tmp_path):
    yield (found := Saver(tmp_path, keep_last=2, keep_every=0, beside=True))
    found.wait()


def save(beside, step=1, state=None, sharded=None):
    return beside.save(step, state=state or {}, sharded=sharded or {}, identity=IDENTITY)


@pytest.fixture
def held(monkeypatch):
    """Files are not written before this event is set."""
    event, write = threading.Event(), saver.tensorfile.write_tensors

    def wait_and_write(path, tensors):
        assert event.wait(20)
        return write(path, tensors)

    monkeypatch.setattr(saver.tensorfile, "write_tensors", wait_and_write)
    yield event
    event.set()


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_what_changes_after_the_snapshot_is_not_saved(beside, held):
    state, sharded = {"w": torch.arange(6.0).view(2, 3).T, "steps": [1]}, head()
    wanted = {name: part.tensor.clone() for name, part in sharded.items()}
    warning = save(beside, 7, state, sharded)
    assert beside.done() is None and not warning
    for tensor in (state["w"], *(part.tensor for part in sharded.values())):
        tensor.zero_()
    state["steps"].append(2)
    held.set()
    saved = beside.wait()
    assert (saved.step, saved.error) == (7, None) and saved.seconds >= saved.stall_s > 0
    assert saved.bytes == 24 + sum(tensor.nbytes for tensor in wanted.values())
    loaded = checkpoint.load(saved.path)
    assert same(loaded.state, {"w": torch.arange(6.0).view(2, 3).T, "steps": [1]})
    assert all(same(loaded.rows(name), tensor) for name, tensor in wanted.items())


def test_one_save_waits_for_the_other_and_each_end_is_told_once(beside, held, tmp_path):
    save(beside, 1)
    threading.Timer(0.1, held.set).start()
    save(beside, 2)
    assert (tmp_path / "step-00000001").is_dir()
    assert [beside.wait().step, beside.wait().step, beside.wait()] == [1, 2, None]


def test_what_is_no_matter_of_the_disk_is_raised_where_all_ranks_come(beside, monkeypatch, tmp_path):
    """``done`` is asked at a step of its own on each rank: none may leave there."""
    monkeypatch.setattr(saver.tensorfile, "write_tensors", lambda path, tensors: 1 / 0)
    save(beside, 1)
    beside._writing.join()
    assert beside.done() is None
    with pytest.raises(ZeroDivisionError):
        beside.wait()
    assert beside.done() is None and names(tmp_path) == []


def test_room_on_the_disk_is_asked_for_first(beside, tmp_path, monkeypatch):
    save(beside, 1)
    usage = namedtuple("usage", ["total", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 3 * 10**8))
    monkeypatch.setattr(saver._Content, "bytes", 2_100_000_000)
    monkeypatch.setattr(saver, "available_memory", lambda: 10**11)
    save(beside, 2)
    assert beside.wait().error is None
    assert "step-00000002: needs 2.1 GB, 300.0 MB are free; make room" in beside.wait().error
    assert names(tmp_path) == ["step-00000001"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0))  # a file system that does not know
    save(beside, 3)
    assert beside.wait().error is None


def test_without_memory_for_a_copy_training_waits(beside, monkeypatch):
    monkeypatch.setattr(saver, "available_memory", lambda: 100)
    warning = save(beside, 1, {"w": torch.zeros(25)})
    assert "a copy needs 100 B of memory on" in warning
    assert not list(filter(lambda thread: thread.name == "checkpoint", threading.enumerate()))
    assert beside.done().error is None
    assert save(beside, 2, {"w": torch.zeros(22)}) == ""


@pytest.mark.parametrize(
    ("demands", "fits"),
    [
        ([("a", 40, 100), ("a", 40, 99), ("b", 80, 100)], True),
        ([("a", 40, 100), ("a", 60, 100), ("b", 1, 100)], False),
        ([("a", 40, 100), ("b", 0, 0)], True),
    ],
)
def test_the_ranks_of_a_host_share_its_memory(demands, fits):
    assert (saver._lack_of_memory(demands) == "") == fits
