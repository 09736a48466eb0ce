"""The sharded head on several ranks, and on several nodes, against the dense fp64 oracle and one rank."""

import os

import pytest
import torch

from head_reference import Case, assert_agrees, relative_error, train_oracle, train_ours
from megaclass.errors import UserError
from megaclass.heads.margins import ArcFace, CosFace
from megaclass.heads.margins.adaface import AdaFace
from megaclass.heads.margins.curricular import CurricularFace
from megaclass.heads.margins.elastic import ElasticArcFace
from megaclass.heads.margins.magface import MagFace
from megaclass.heads.margins.per_class import ClassMargin
from megaclass.parallel import groups
from ranks import run_ranks

pytestmark = pytest.mark.dist

CASES = [
    Case(),
    Case(margin=ArcFace(gradient="exact"), accumulation=2),
    Case(margin=CosFace(), sample_rate=0.4),
    Case(sample_rate=0.4, accumulation=2),
    Case(parallelism="data", accumulation=2),
    Case(parallelism="data", sample_rate=0.4),
    Case(sub_centres=3),
    Case(sub_centres=2, sample_rate=0.4, accumulation=2),
    Case(parallelism="data", sub_centres=2, sample_rate=0.4),
    Case(num_classes=2, batch=12),  # at 3 ranks one of them owns no class
    Case(margin=ElasticArcFace(std=0.2), steps=5, accumulation=2, parallelism="data"),  # the same draws at 1, 2, 3
    Case(margin=AdaFace(t_alpha=0.3), steps=5, accumulation=2),
    Case(margin=CurricularFace(t_alpha=0.3, scale=32.0), steps=5, sample_rate=0.4, accumulation=2),
    Case(margin=CurricularFace(scale=32.0), steps=5, parallelism="data"),
    Case(margin=MagFace(l_a=12.0, u_a=16.0), steps=5),
    Case(margin=ClassMargin(numbers_C=torch.linspace(0, 0.6, 67)), steps=5),
]
BY_NODE = [
    Case(shard_group="node", steps=10),
    Case(shard_group="node", steps=10, margin=ArcFace(gradient="exact"), accumulation=3),
    Case(shard_group="node", steps=10, sample_rate=0.4, accumulation=3),
    Case(shard_group="node", steps=5, margin=AdaFace(t_alpha=0.3)),
    Case(shard_group="node", steps=5, margin=ElasticArcFace(std=0.2)),
]
ROUNDED = [Case(shard_group="node", steps=10, sample_rate=0.4, storage=s) for s in ("bf16", "int8_rowwise")]


def train_all(cases: list[Case]) -> list:
    return [train_ours(case) for case in cases]


def assert_same_samples(ours, alone) -> None:
    for a, b in zip(ours.samples, alone.samples, strict=True):
        assert (a is None and b is None) or a.tolist() == b.tolist()


@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_do_not_depend_on_the_world_size(ranks: int) -> None:
    results = run_ranks(ranks, train_all, CASES)
    for case, *of_ranks in zip(CASES, *results, strict=True):
        alone = train_ours(case)
        for ours in of_ranks:
            assert_agrees(ours, train_oracle(case, ours.samples))
            assert_same_samples(ours, alone)


def places_and_heads(cases: list[Case]) -> tuple:
    everyone = groups.all_ranks()
    nodes = everyone.split("node")
    assert everyone.split("node").within.process_group is nodes.within.process_group  # made once
    return (nodes.within.rank, nodes.within.size, nodes.across.rank, nodes.across.size), train_all(cases)


def test_two_nodes_of_two_ranks() -> None:
    """Replicas agree to the bit (see ``head_reference``); rounded storage as far as rounding goes with one rank."""
    results = run_ranks(4, places_and_heads, BY_NODE + ROUNDED, node_ranks=2)
    assert [place for place, _ in results] == [(0, 2, 0, 2), (1, 2, 0, 2), (0, 2, 1, 2), (1, 2, 1, 2)]
    for case, *of_ranks in zip(BY_NODE + ROUNDED, *(heads for _, heads in results), strict=True):
        alone = train_ours(case)
        for ours in of_ranks:
            assert_same_samples(ours, alone)
            if case in BY_NODE:
                assert_agrees(ours, train_oracle(case, ours.samples))
            else:
                losses = torch.tensor(ours.losses), torch.tensor(alone.losses)
                assert relative_error(*losses) < 1e-2 and relative_error(ours.centres, alone.centres) < 3e-2


def ungroupable(told: list[tuple[str, str]]) -> None:
    os.environ["LOCAL_WORLD_SIZE"], os.environ["LOCAL_RANK"] = told[groups.rank()]
    with pytest.raises(UserError, match="start the same number on each, or group by world"):
        groups.all_ranks().split("node")
    del os.environ["LOCAL_RANK"]
    with pytest.raises(UserError, match="start the same number on each"):
        groups.all_ranks().split("node")


def test_nodes_of_different_sizes_and_ranks_without_a_place_are_refused() -> None:
    run_ranks(3, ungroupable, [("2", "0"), ("2", "1"), ("1", "0")])
