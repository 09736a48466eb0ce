"""The sharded head on several ranks against the dense fp64 oracle."""

import pytest

from head_reference import Case, assert_agrees, train_oracle, train_ours
from megaclass.heads.margins import ArcFace, CosFace
from ranks import run_ranks

pytestmark = pytest.mark.dist

CASES = [
    Case(),
    Case(margin=ArcFace(gradient="exact"), accumulation=2),
    Case(margin=CosFace(), sample_rate=0.4),
    Case(sample_rate=0.4, accumulation=2),
    Case(parallelism="data", accumulation=2),
    Case(parallelism="data", sample_rate=0.4),
    Case(num_classes=2, batch=12),  # at 3 ranks one of them owns no class
]


def _train_all() -> list:
    return [train_ours(case) for case in CASES]


@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_do_not_depend_on_the_world_size(ranks: int) -> None:
    results = run_ranks(ranks, _train_all)
    for i, case in enumerate(CASES):
        alone = train_ours(case)
        for of_rank in results:
            ours = of_rank[i]
            assert_agrees(ours, train_oracle(case, ours.samples))
            # The sample itself is the same at any number of ranks.
            for a, b in zip(ours.samples, alone.samples, strict=True):
                assert (a is None and b is None) or a.tolist() == b.tolist()
