"""No kill and no full disk, at any moment, loses the last good checkpoint."""

import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

from checkpoint_cases import head, read_all, same, save
from megaclass import checkpoint
from megaclass.checkpoint import saver
from megaclass.errors import UserError

pytestmark = pytest.mark.long


class Killed(BaseException):
    """Not an Exception: nothing may clean up after it, as after SIGKILL."""


OPERATIONS = [
    (os, "fsync"),
    (Path, "open"),
    (Path, "mkdir"),
    (Path, "replace"),
    (shutil, "rmtree"),
    (os, "unlink"),
    (saver.tensorfile, "write_tensors"),
    (json, "dumps"),
]


def fail_at(monkeypatch, number, error, after):
    """Raise ``error`` before (or after) the ``number``-th file operation from now on.

    Returns a function that says how many operations there were.
    """
    count = 0

    def wrap(original):
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            mine = count
            if mine == number and not after:
                raise error
            result = original(*arguments, **options)
            if mine == number and after:
                raise error
            return result

        return operation

    for owner, name in OPERATIONS:
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))
    return lambda: count


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error, after, beside",
    [(Killed(), False, False), (Killed(), True, False), (FULL, False, False), (FULL, False, True)],
)
@pytest.mark.parametrize("step", [1, 2])
def test_a_failure_at_any_operation_leaves_a_good_checkpoint(tmp_path, monkeypatch, step, error, after, beside):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of real ones take their time
    for number in range(1, 200):
        root = tmp_path / str(number)
        old, new = {"w": torch.zeros(5)}, {"w": torch.ones(5)}
        save(root, 1, state=old, sharded=head(fill=0), keep_last=1)
        with pytest.MonkeyPatch.context() as patch:
            operations = fail_at(patch, number, error, after)
            try:
                save(root, step, state=new, sharded=head(fill=1), keep_last=1, beside=beside)
                finished = True
            except (Killed, UserError) as raised:
                finished = False
                assert isinstance(raised, Killed) or "No space left on device" in str(raised)
        found = checkpoint.load(checkpoint.latest(root))
        value = found.state["w"][0].item()
        assert same(found.state, new if value else old)
        assert all(torch.equal(found.rows(name), part.tensor) for name, part in head(fill=value).items())
        for path in checkpoint.list_checkpoints(root):
            read_all(path)
        if not finished and error is FULL:
            assert not list(root.glob(".tmp-*"))
        save(root, 3, keep_last=1)  # and the next save tidies up
        assert [path.name for path in root.iterdir()] == ["step-00000003"]
        if operations() < number:
            assert finished and value == 1 and number > 20
            return
    pytest.fail("the save never finished")


def test_a_full_disk_and_a_place_that_cannot_be_written_are_one_clear_line(tmp_path):
    save(tmp_path, 1, state={"w": torch.zeros(5)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(UserError, match=r"cannot write checkpoint .*step-00000002: File too large; make room"):
            save(tmp_path, 2, state={"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    with pytest.raises(UserError, match=r"cannot write checkpoint .*Not a directory"):
        save(tmp_path / "step-00000001" / "manifest.json" / "checkpoints")
