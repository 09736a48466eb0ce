"""The sample of Partial FC: its size, its content, its independence of the number of shards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.heads.sampling import sample_classes
from megaclass.parallel.groups import shard_range


def whole(labels: torch.Tensor, classes: int, size: int, key: int) -> torch.Tensor:
    return sample_classes(labels, classes, size, key, 0, classes)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 300), st.floats(0, 1), st.integers(1, 40), st.integers(0, 10**9), st.integers(1, 5))
def test_holds_the_positives_and_has_the_size(classes: int, rate: float, batch: int, key: int, shards: int) -> None:
    labels = torch.randint(0, classes, (batch,), generator=torch.Generator().manual_seed(key))
    size = round(rate * classes)
    sample = whole(labels, classes, size, key)
    assert torch.equal(sample, torch.unique(sample))
    assert sample.min() >= 0 and sample.max() < classes
    assert torch.isin(labels, sample).all()
    assert len(sample) == max(size, len(torch.unique(labels)))
    parts = [sample_classes(labels, classes, size, key, *shard_range(classes, i, shards)) for i in range(shards)]
    assert torch.equal(torch.cat(parts), sample)


@pytest.mark.long
def test_negatives_are_uniform_and_change_with_the_key() -> None:
    classes, size, draws = 50, 15, 4000
    labels = torch.tensor([3, 3, 7])
    count = torch.zeros(classes)
    together = torch.zeros(classes, classes)
    for key in range(draws):
        sample = whole(labels, classes, size, key)
        count[sample] += 1
        together[sample[:, None], sample] += 1
    assert count[3] == count[7] == draws
    negatives = torch.tensor([c for c in range(classes) if c not in (3, 7)])
    expected = (size - 2) / (classes - 2)
    deviation = (draws * expected * (1 - expected)) ** 0.5
    assert ((count[negatives] - draws * expected).abs() < 5 * deviation).all()
    # Pairs too: a sample of runs of neighbours would pass the test above.
    pair = expected * (size - 3) / (classes - 3)
    pairs = together[negatives][:, negatives][~torch.eye(len(negatives), dtype=torch.bool)]
    assert ((pairs - draws * pair).abs() < 6 * (draws * pair * (1 - pair)) ** 0.5).all()
