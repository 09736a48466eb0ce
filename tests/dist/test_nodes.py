"""Four gloo ranks as two nodes of two: the head with the classes on each node, and gradients averaged by nodes."""

import pytest
import torch
from test_training import HALF, STEPS, global_curves, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tiny
from head_reference import Case, assert_agrees, relative_error, train_oracle, train_ours
from megaclass.parallel import groups
from megaclass.parallel import gradients
from megaclass.errors import UserError
from megaclass.heads.margins import ArcFace, CosFace
from megaclass.heads.partial_fc import PartialFC
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
HOOKS = [("hierarchical", "none"), ("hierarchical", "fp16"), ("hierarchical", "bf16"), ("flat", "fp16"),
         ("flat", "bf16"), ("flat", "powersgd")]  # fmt: skip
TRAINED = "by_node"


def network():
    torch.manual_seed(0)
    # 13 columns: no bucket is a multiple of the ranks of a node.
    return nn.Sequential(nn.Linear(13, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))


def gradients_of(hook, steps=3, new_data=True):
    """Of each step: buckets are built anew after the first."""
    module, found = DistributedDataParallel(network(), bucket_cap_mb=0.003, gradient_as_bucket_view=True), []
    if hook:
        module.register_comm_hook(*hook)
    for step in range(steps):
        generator = torch.Generator().manual_seed(100 * step * new_data + groups.rank())
        module.zero_grad()
        module(torch.randn(8, 13, generator=generator)).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    return torch.stack(found)


def places():
    nodes = groups.all_ranks().split("node")
    assert groups.all_ranks().split("node").within.process_group is nodes.within.process_group  # made once
    return nodes.within.rank, nodes.within.size, nodes.across.rank, nodes.across.size


def work(folder):
    gradients.POWERSGD_START, gradients.POWERSGD_RANK = 2, 1
    hooks = {names: gradients_of(gradients.communication_hook(*names)) for names in HOOKS}
    assert gradients.communication_hook("flat", "none") is None
    with pytest.raises(UserError, match="gradient_reduce"):
        gradients.communication_hook("hierarchical", "powersgd")
    repeated = gradients_of(gradients.communication_hook("flat", "powersgd"), 14, new_data=False)
    return {
        "places": places(),
        "plain": gradients_of(None),
        "hooks": hooks,
        "repeated": repeated,
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


# -- the head -----------------------------------------------------------------------------------------


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


# -- gradients ----------------------------------------------------------------------------------------

# Of the largest gradient: rounding on the way, once for each rank and once for the sum.
TOLERANCE = {"none": 1e-6, "fp16": 4e-3, "bf16": 3e-2}


@pytest.mark.parametrize("names", [names for names in HOOKS if names[1] != "powersgd"], ids="-".join)
def test_the_mean_is_that_of_all_ranks(results, names):
    plain = results[0]["plain"]
    largest = plain.abs().max(dim=1).values
    for found in results:
        ours = found["hooks"][names]
        assert torch.equal(ours, results[0]["hooks"][names])  # or weights would drift apart
        error = ((ours - plain).abs().max(dim=1).values / largest).max()
        assert error < TOLERANCE[names[1]]
        assert names[1] == "none" or error > 1e-5  # it was rounded


def test_powersgd_makes_up_for_what_it_leaves_out(results):
    ours, plain = results[0]["hooks"]["flat", "powersgd"], results[0]["plain"]
    assert all(torch.equal(found["hooks"]["flat", "powersgd"], ours) for found in results)
    torch.testing.assert_close(ours[:2], plain[:2])  # before it starts
    repeated = results[0]["repeated"]
    exact, compressed = repeated[0], repeated[2:]
    first, mean = ((found - exact).norm() / exact.norm() for found in (compressed[0], compressed.mean(0)))
    assert first > 0.02 and mean < 0.3 * first


# -- what cannot be grouped ---------------------------------------------------------------------------


def test_nodes_of_different_sizes_and_ranks_without_a_place(monkeypatch):
    assert groups.node_table([(1, 0), (0, 1), (1, 1), (0, 0)]) == [[3, 1], [0, 2]]
    with pytest.raises(UserError, match="2 on node 0, 1 on node 1; start the same number"):
        groups.node_table([(0, 0), (0, 1), (1, 0)])
    with pytest.raises(UserError, match="rank 1 lacks GROUP_RANK"):
        groups.node_table([(0, 0), None])
    with pytest.raises(ValueError, match="'steep'"):
        gradients.communication_hook("steep", "none")
    with pytest.raises(ValueError, match="shard_group"):
        PartialFC(3, 2, shard_group="house")

