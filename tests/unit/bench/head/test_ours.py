"""One process as rank 0 of many: what the collectives then give, and that the head does one rank's work."""

import pytest
import torch

from megaclass.bench.old_head.cases import HeadCase
from megaclass.bench.old_head.contender import Inputs
from megaclass.bench.old_head.ours import Megaclass
from megaclass.parallel.groups import Simulated, World

WORLD = World(0, 1, torch.device("cpu"))


def test_collectives():
    tensor = torch.arange(8.0).reshape(4, 2)
    group = Simulated(4, lambda tensor_b: torch.cat([tensor_b] * 4))
    assert group.share(401) == (0, 101)
    assert group.all_gather_rows(tensor[:1]).tolist() == [[0, 1]] * 4
    assert group.all_reduce_(tensor.clone(), "mean").equal(tensor)
    assert group.reduce_scatter_rows(tensor).tolist() == [[0, 1]]
    assert group.split("node").within is group and group.split("rank").across is group


@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
def test_a_simulated_rank_holds_its_shard_and_sees_the_whole_batch(sample_rate):
    case = HeadCase(
        num_classes=401, embedding_dim=8, batch_size=16, simulate_ranks=4, sample_rate=sample_rate
    )
    contender = Megaclass(case, WORLD, {})
    assert contender.head.class_range == (0, 101)
    contender.prepare(0)
    seen = []
    contender.head.register_forward_hook(lambda head, args, loss: seen.append(head.pending))
    assert torch.isfinite(contender.step())
    assert contender._embeddings_bD.grad.shape == (4, 8)
    assert contender.head.shard.steps == 1
    _, labels_B = Inputs(case, WORLD.device).of_step(0)
    unit_BD, gathered_B = (
        contender._gathered(contender._embeddings_bD),
        contender._gathered(contender._labels_b),
    )
    assert unit_BD.shape == (16, 8) and gathered_B.equal(labels_B)
    assert unit_BD[4:].norm(dim=1).allclose(torch.ones(12))


def test_inputs_depend_on_seed_and_step_alone():
    case = HeadCase(num_classes=1000, batch_size=64, embedding_dim=4)
    first, again = Inputs(case, WORLD.device), Inputs(case, WORLD.device)
    other = first.of_step(1)
    assert all(a.equal(b) for a, b in zip(first.of_step(0), again.of_step(0), strict=True))
    assert not other[0].equal(first.of_step(0)[0]) and other[1].max() > 500
