"""Checkpoints of several ranks: one directory, a rank without rows, errors that reach every rank.

What was saved by four ranks is read by one and by three in test_training.py.
"""

import itertools
import os
import threading
import time

import pytest
import torch

from megaclass import checkpoint
from megaclass.checkpoint import Saver, Sharded, tensorfile
from megaclass.parallel import groups
from megaclass.parallel.rendezvous import is_loss
from ranks import run_ranks

pytestmark = pytest.mark.dist

WHOLE = torch.arange(206.0).view(103, 2)


def started(root, step, whole=WHOLE, beside=True, **changes):
    """A save of this rank's rows that was begun."""
    start, stop = groups.all_ranks().share(len(whole))
    sharded = {"head/centres": Sharded(whole[start:stop], start, len(whole))}
    state = {"random": groups.gather_objects(groups.rank())}
    saver = Saver(root, keep_last=2, keep_every=0, beside=beside)
    saver.save(step, state=state, identity={}, **{"sharded": sharded, **changes})
    return saver


def save(*arguments, **options):
    return started(*arguments, **options).wait()


def save_on_a_full_disk(root, rank, beside):
    """How a save ends when the disk of one rank is full, and what it leaves."""

    def full(path, tensors):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if groups.rank() == rank:
            patch.setattr(tensorfile, "write_tensors", full)
        error = save(root, 20, beside=beside).error
    groups.barrier()  # rank 0 tidies up while the others are already told
    return error, [path.name for path in root.iterdir()]


def save_what_differs(root, beside):
    rank = groups.rank()
    rows = torch.zeros(2, dtype=torch.float32 if rank == 0 else torch.bfloat16)
    with pytest.raises(ValueError, match="rank 1 saves rows of"):
        save(root, 1, sharded={"centres": Sharded(rows, 2 * rank, 4)}, beside=beside)


def work_of_two(root):
    path = [save(root / f"run-{beside}", 10, beside=beside).path for beside in (False, True)]
    full = [
        save_on_a_full_disk(root / f"run-{beside}", rank, beside)
        for beside, rank in itertools.product((False, True), (0, 1))
    ]
    for beside in (False, True):
        save_what_differs(root / "differing", beside)
    return path, full


def test_two_ranks_make_one_checkpoint_and_hear_of_each_others_errors(tmp_path):
    (paths, full), others = run_ranks(2, work_of_two, tmp_path)
    assert (paths, full) == others
    for path in paths:
        loaded = checkpoint.load(path)
        assert loaded.world_size == 2 and loaded.state["random"] == [0, 1]
        assert torch.equal(loaded.rows("head/centres", 50, 60), WHOLE[50:60])
        assert sorted(file.name for file in path.iterdir()) == [
            "manifest.json",
            "replicated.safetensors",
            "shard-0000000000-0000000052.safetensors",
            "shard-0000000052-0000000103.safetensors",
        ]
        assert [found.name for found in path.parent.iterdir()] == ["step-00000010"]
    for text, left in full:
        assert "No space left on device" in text and "earlier checkpoints are untouched" in text
        assert left == ["step-00000010"]
    assert list((tmp_path / "differing").iterdir()) == []


def lose_a_rank(root):
    if groups.rank() == 1:
        threading.Timer(0.2, os._exit, [0]).start()
        tensorfile.write_tensors = lambda *given: time.sleep(20)
    saver = started(root, 1)
    try:
        saver.wait()
    except RuntimeError as error:
        (root / "heard").write_text(str(is_loss(error)))
        os._exit(0)  # there is no group any more to leave


def test_a_lost_rank_ends_the_wait_for_a_save(tmp_path):
    with pytest.raises(FileNotFoundError, match="result-0"):
        run_ranks(2, lose_a_rank, tmp_path)
    assert (tmp_path / "heard").read_text() == "True"
    assert [path.name for path in tmp_path.iterdir()] == ["heard"]


def test_a_rank_may_have_no_rows(tmp_path):
    saved, *_ = run_ranks(3, save, tmp_path, 1, WHOLE[:2])
    assert torch.equal(checkpoint.load(saved.path).rows("head/centres"), WHOLE[:2])
