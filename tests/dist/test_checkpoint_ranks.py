"""Checkpoints and numbers of ranks: saved by two, read by one and three; errors that reach every rank."""

import pytest
import torch

from megaclass import checkpoint
from megaclass.checkpoint import Sharded, writer
from megaclass.errors import UserError
from megaclass.parallel import groups
from ranks import run_ranks

pytestmark = pytest.mark.dist

CLASSES = 103


def whole():
    generator = torch.Generator().manual_seed(0)
    return {
        "head/centres": torch.randn(CLASSES, 8, generator=generator),
        "head/momentum": torch.randn(CLASSES, 8, generator=generator).bfloat16(),
        "head/last_step": torch.randint(0, 99, (CLASSES,), generator=generator),
    }


def my_rows(classes=CLASSES):
    return groups.shard_range(classes, groups.rank(), groups.world_size())


def save(root, step):
    start, stop = my_rows()
    sharded = {name: Sharded(tensor[start:stop], start, CLASSES) for name, tensor in whole().items()}
    random_states = groups.gather_objects(groups.rank())
    state = {"backbone": {"weight": torch.full((5,), 3.0)}, "random": random_states}
    identity = {"classes": CLASSES}
    return checkpoint.save(root, step, state=state, sharded=sharded, identity=identity, keep_last=2)


def save_on_a_full_disk(root, rank):
    """The error that the save ends with, when the disk of one rank is full."""

    def full(path, tensors):
        raise OSError(28, "No space left on device")

    original = writer.tensorfile.write_tensors
    if groups.rank() == rank:
        writer.tensorfile.write_tensors = full
    try:
        save(root, 20)
    except UserError as error:
        groups.barrier()  # rank 0 tidies up while the others are already told
        return str(error), [path.name for path in root.iterdir()]
    finally:
        writer.tensorfile.write_tensors = original


def save_what_differs(root):
    rank = groups.rank()
    rows = torch.zeros(2, dtype=torch.float32 if rank == 0 else torch.bfloat16)
    try:
        sharded = {"centres": Sharded(rows, 2 * rank, 4)}
        checkpoint.save(root, 1, state={}, sharded=sharded, identity={}, keep_last=1)
    except ValueError as error:
        return str(error)


def save_two_rows(root):
    """At three ranks the last one has none."""
    start, stop = my_rows(2)
    sharded = {"centres": Sharded(torch.arange(2.0)[start:stop], start, 2)}
    return checkpoint.save(root, 1, state={}, sharded=sharded, identity={}, keep_last=1)


def load(path):
    loaded = checkpoint.load(path, identity={"classes": CLASSES})
    return my_rows(), loaded.state, {name: loaded.rows(name, *my_rows()) for name in loaded.sharded}


def work_of_two(root):
    path = save(root / "run", 10)
    full = [save_on_a_full_disk(root / "run", rank) for rank in (0, 1)]
    return path, full, save_what_differs(root / "differing")


def work_of_three(root, path):
    return load(path), save_two_rows(root / "two")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def of_two(root):
    return run_ranks(2, work_of_two, root)


@pytest.fixture(scope="module")
def of_three(root, of_two):
    return run_ranks(3, work_of_three, root, of_two[0][0])


def test_two_ranks_make_one_checkpoint(root, of_two):
    path = of_two[0][0]
    assert path == of_two[1][0] == checkpoint.latest(root / "run")
    assert checkpoint.load(path).world_size == 2
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "replicated.safetensors",
        "shard-0000000000-0000000052.safetensors",
        "shard-0000000052-0000000103.safetensors",
    ]


@pytest.mark.parametrize("ranks", [1, 3])
def test_saved_by_two_read_by_one_and_three(of_two, of_three, ranks):
    results = [load(of_two[0][0])] if ranks == 1 else [loaded for loaded, _ in of_three]
    for rank, ((start, stop), state, rows) in enumerate(results):
        assert (start, stop) == groups.shard_range(CLASSES, rank, ranks)
        assert torch.equal(state["backbone"]["weight"], torch.full((5,), 3.0))
        assert state["random"] == [0, 1]
        for name, tensor in whole().items():
            assert rows[name].dtype == tensor.dtype
            assert torch.equal(rows[name], tensor[start:stop])


def test_a_rank_may_have_no_rows(of_three):
    assert torch.equal(checkpoint.load(of_three[0][1]).rows("centres"), torch.arange(2.0))


def test_an_error_on_one_rank_is_raised_on_both(of_two):
    assert of_two[0][1] == of_two[1][1]
    for text, left in of_two[0][1]:
        assert "No space left on device" in text and "earlier checkpoints are untouched" in text
        assert left == ["step-00000010"]


def test_ranks_that_disagree_are_told(root, of_two):
    assert all("rank 1 saves rows of" in of_rank[2] for of_rank in of_two)
    assert list((root / "differing").iterdir()) == []
