"""Checkpoints of several ranks: one directory, a rank without rows, errors that reach every rank.

What was saved by four ranks is read by one and by three in test_training.py.
"""

import pytest
import torch

from megaclass import checkpoint
from megaclass.checkpoint import Sharded, saver
from megaclass.errors import UserError
from megaclass.parallel import groups
from ranks import run_ranks

pytestmark = pytest.mark.dist

WHOLE = torch.arange(206.0).view(103, 2)


def save(root, step, whole=WHOLE, **changes):
    start, stop = groups.all_ranks().share(len(whole))
    sharded = {"head/centres": Sharded(whole[start:stop], start, len(whole))}
    state = {"random": groups.gather_objects(groups.rank())}
    return checkpoint.save(
        root, step, state=state, identity={}, keep_last=2, **{"sharded": sharded, **changes}
    )


def save_on_a_full_disk(root, rank):
    """The error that the save ends with, when the disk of one rank is full."""

    def full(path, tensors, go_on):
        raise OSError(28, "No space left on device")

    original = saver.tensorfile.write_tensors
    if groups.rank() == rank:
        saver.tensorfile.write_tensors = full
    try:
        save(root, 20)
    except UserError as error:
        groups.barrier()  # rank 0 tidies up while the others are already told
        return str(error), [path.name for path in root.iterdir()]
    finally:
        saver.tensorfile.write_tensors = original


def save_what_differs(root):
    rank = groups.rank()
    rows = torch.zeros(2, dtype=torch.float32 if rank == 0 else torch.bfloat16)
    with pytest.raises(ValueError, match="rank 1 saves rows of"):
        save(root, 1, sharded={"centres": Sharded(rows, 2 * rank, 4)})


def work_of_two(root):
    path = save(root / "run", 10)
    full = [save_on_a_full_disk(root / "run", rank) for rank in (0, 1)]
    save_what_differs(root / "differing")
    return path, full


def test_two_ranks_make_one_checkpoint_and_hear_of_each_others_errors(tmp_path):
    (path, full), others = run_ranks(2, work_of_two, tmp_path)
    assert (path, full) == others and path == checkpoint.latest(tmp_path / "run")
    loaded = checkpoint.load(path)
    assert loaded.world_size == 2 and loaded.state["random"] == [0, 1]
    assert torch.equal(loaded.rows("head/centres", 50, 60), WHOLE[50:60])
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "replicated.safetensors",
        "shard-0000000000-0000000052.safetensors",
        "shard-0000000052-0000000103.safetensors",
    ]
    for text, left in full:
        assert "No space left on device" in text and "earlier checkpoints are untouched" in text
        assert left == ["step-00000010"]
    assert list((tmp_path / "differing").iterdir()) == []


def test_a_rank_may_have_no_rows(tmp_path):
    path, *_ = run_ranks(3, save, tmp_path, 1, WHOLE[:2])
    assert torch.equal(checkpoint.load(path).rows("head/centres"), WHOLE[:2])
