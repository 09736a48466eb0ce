"""Four gloo ranks as two nodes of two: the head with the classes on each node."""

import pytest
import torch
from test_training import HALF, STEPS, global_curves, train

import tiny
from head_reference import Case, assert_agrees, relative_error, train_oracle, train_ours
from megaclass.errors import UserError
from megaclass.heads.margins import ArcFace, CosFace
from megaclass.parallel import groups, rendezvous
from ranks import run_ranks

pytestmark = pytest.mark.dist

RANKS = 4
HEADS = [
    Case(shard_group="node", steps=10),
    Case(shard_group="node", steps=10, margin=ArcFace(gradient="exact"), accumulation=3),
    Case(shard_group="node", steps=10, margin=CosFace(), sample_rate=0.4),
    Case(shard_group="node", steps=10, sample_rate=0.4, accumulation=3),
]
STORAGES = [Case(shard_group="node", steps=10, sample_rate=0.4, storage=s) for s in ("bf16", "int8_rowwise")]
TRAINED = "by_node"


def places():
    nodes = groups.all_ranks().split("node")
    assert groups.all_ranks().split("node").within.process_group is nodes.within.process_group  # made once
    return nodes.within.rank, nodes.within.size, nodes.across.rank, nodes.across.size


def work(folder):
    return {
        "places": places(),
        "heads": [train_ours(case) for case in HEADS + STORAGES],
        "curve": {TRAINED: train(folder, False, TRAINED)},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    tiny.write_records(folder / "records", classes=60, samples=2)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return run_ranks(RANKS, work, folder, node_ranks=2)


def test_a_table_of_two_nodes(results):
    assert [found["places"] for found in results] == [(0, 2, 0, 2), (1, 2, 0, 2), (0, 2, 1, 2), (1, 2, 1, 2)]


@pytest.mark.parametrize("number", range(len(HEADS)))
def test_the_head_on_each_node_gives_the_gradients_of_one_process(results, number):
    case = HEADS[number]
    alone = train_ours(case)
    for found in results:
        ours = found["heads"][number]
        assert_agrees(ours, train_oracle(case, ours.samples))
        for a, b in zip(ours.samples, alone.samples, strict=True):
            assert (a is None and b is None) or a.tolist() == b.tolist()


@pytest.mark.parametrize("number", range(len(STORAGES)))
def test_rounded_storage_on_each_node(results, number):
    """Replicas agree to the bit (see ``head_reference``), and with one process as far as rounding goes."""
    alone, ours = train_ours(STORAGES[number]), results[0]["heads"][len(HEADS) + number]
    assert relative_error(torch.tensor(ours.losses), torch.tensor(alone.losses)) < 1e-2
    assert relative_error(ours.centres, alone.centres) < 3e-2


def test_a_run_with_the_head_on_each_node(results, folder):
    """The curve of one process, also of one that goes on from the checkpoint that four ranks wrote in the middle."""
    labels, losses = global_curves([found["curve"] for found in results], [TRAINED])[TRAINED]
    (folder / TRAINED / "checkpoints" / f"step-{STEPS:08d}").rename(folder / "the-last")
    resumed = global_curves([{TRAINED: train(folder, True, TRAINED)}], [TRAINED])[TRAINED]
    (folder / TRAINED).rename(folder / "of-four")
    alone = global_curves([{TRAINED: train(folder, False, TRAINED)}], [TRAINED])[TRAINED]
    assert (labels, losses) == (alone[0], pytest.approx(alone[1], rel=1e-4))
    assert resumed == (labels[HALF:], pytest.approx(losses[HALF:], rel=1e-4))


def test_nodes_of_different_sizes_and_ranks_without_a_place():
    assert rendezvous.node_table([(1, 0), (0, 1), (1, 1), (0, 0)]) == [[3, 1], [0, 2]]
    with pytest.raises(UserError, match="2 on node 0, 1 on node 1; start the same number"):
        rendezvous.node_table([(0, 0), (0, 1), (1, 0)])
    with pytest.raises(UserError, match="rank 1 lacks GROUP_RANK"):
        rendezvous.node_table([(0, 0), None])
