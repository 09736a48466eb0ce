"""The keyed permutation: a bijection for every n, its inverse, and no visible bias."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megaclass.parallel.seeding import KeyedPermutation, derive_key

keys = st.integers(0, 2**63 - 1)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5000), keys)
@example(2**16 + 1, 7)
@example(999_983, 7)
def test_it_is_a_bijection_with_its_inverse(n, key):
    permutation = KeyedPermutation(n, key)
    index_N = torch.arange(n)
    element_N = permutation(index_N)
    assert torch.equal(element_N.sort().values, index_N)
    assert torch.equal(permutation.inverse(element_N), index_N)


@settings(max_examples=40, deadline=None)
@given(st.integers(2**30, 2**62), keys, st.data())
def test_huge_n_and_arrays_as_well_as_tensors(n, key, data):
    permutation = KeyedPermutation(n, key)
    index_N = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=50))), np.int64)
    element_N = permutation(torch.from_numpy(index_N))
    assert ((element_N >= 0) & (element_N < n)).all() and len(element_N.unique()) == len(index_N)
    assert permutation.inverse(element_N).tolist() == index_N.tolist()
    assert permutation(index_N).dtype == np.int64
    assert permutation(index_N).tolist() == element_N.tolist()
    assert permutation.inverse(element_N.numpy()).tolist() == index_N.tolist()


def assert_uniform(counts: torch.Tensor, expected: torch.Tensor | float, freedom: int, offset: float = 0.0):
    """Chi-square within four standard deviations of its mean, which ``offset`` of them shifts."""
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs((chi_square - freedom) / math.sqrt(2 * freedom) + offset) < 4


def test_the_first_elements_are_uniform():
    """Partial FC takes the first k elements as its sample: over many keys every element is as likely."""
    n, taken, draws = 1000, 100, 1000
    counts = torch.zeros(n)
    for key in range(draws):
        counts[KeyedPermutation(n, derive_key("test", key))(torch.arange(taken))] += 1
    # A sample without replacement varies less than independent draws do, by 1 - taken / n.
    assert_uniform(counts, draws * taken / n, n - 1, (taken / n) * math.sqrt((n - 1) / 2))


@pytest.mark.parametrize("n", [10, 97, 1000])
def test_neighbours_land_independently(n):
    """The pair (p(0), p(1)), in coarse cells, is uniform over keys."""
    cells, draws = 5, 1500
    pairs = torch.stack([KeyedPermutation(n, derive_key("pair", key))(torch.arange(2)) for key in range(draws)])
    edges = torch.arange(1, cells) * n // cells
    cell = torch.bucketize(pairs, edges, right=True)
    counts = torch.bincount(cell[:, 0] * cells + cell[:, 1], minlength=cells**2).view(cells, cells)
    sizes = torch.bincount(torch.bucketize(torch.arange(n), edges, right=True)).double()
    expected = (torch.outer(sizes, sizes) - torch.diag(sizes)) / (n * (n - 1)) * draws
    assert_uniform(counts, expected, cells**2 - 1)


def test_small_n_reaches_every_order():
    orders = torch.stack([KeyedPermutation(3, derive_key("small", key))(torch.arange(3)) for key in range(1200)])
    counts = torch.bincount(orders @ torch.tensor([9, 3, 1]))
    assert (counts > 0).sum() == 6
    assert_uniform(counts[counts > 0], 200.0, 5)


def test_other_keys_give_other_orders():
    index_N = torch.arange(1000)
    orders = [KeyedPermutation(1000, key)(index_N) for key in (0, 1, 2**32, 2**62)]
    for i in range(4):
        for j in range(i):
            assert int((orders[i] == orders[j]).sum()) < 10


def test_keys_depend_on_every_part_and_never_change():
    made = {derive_key(*parts) for parts in [(), (0,), (1,), ("0",), (0, 1), (1, 0), ("a", 0), ("a0",)]}
    assert len(made) == 8 and all(0 <= key < 2**63 for key in made)
    assert derive_key("sampler", 0, 0) == 7721410290196506209
