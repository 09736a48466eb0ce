"""The keyed permutation: a bijection for every n, its inverse, and no visible bias."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.parallel.seeding import KeyedPermutation, derive_key

keys = st.integers(0, 2**63 - 1)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5000), keys)
def test_it_is_a_bijection_with_its_inverse(n, key):
    permutation = KeyedPermutation(n, key)
    index_N = torch.arange(n)
    element_N = permutation(index_N)
    assert torch.equal(element_N.sort().values, index_N)
    assert torch.equal(permutation.inverse(element_N), index_N)
    assert torch.equal(permutation(permutation.inverse(index_N)), index_N)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9, 10, 2**16, 2**16 + 1, 999_983])
def test_edges(n):
    element_N = KeyedPermutation(n, 7)(torch.arange(n))
    assert element_N.dtype == torch.int64 and torch.equal(element_N.sort().values, torch.arange(n))


@settings(max_examples=40, deadline=None)
@given(st.integers(2**30, 2**62), keys, st.data())
def test_huge_n(n, key, data):
    permutation = KeyedPermutation(n, key)
    index_N = torch.tensor(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=2, max_size=50))))
    element_N = permutation(index_N)
    assert int(element_N.min()) >= 0 and int(element_N.max()) < n
    assert len(element_N.unique()) == len(index_N)
    assert torch.equal(permutation.inverse(element_N), index_N)


@given(n=st.integers(1, 1 << 62), key=st.integers(0, (1 << 63) - 1), data=st.data())
def test_arrays_and_tensors_agree(n, key, data):
    permutation = KeyedPermutation(n, key)
    at_N = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=9)), np.int64)
    for map_ in (permutation, permutation.inverse):
        assert map_(at_N).dtype == np.int64
        assert map_(at_N).tolist() == map_(torch.from_numpy(at_N)).tolist()


def test_no_elements_and_any_shape():
    permutation = KeyedPermutation(100, 3)
    assert permutation(torch.empty(0, dtype=torch.int64)).shape == (0,)
    assert torch.equal(permutation(torch.arange(6).view(2, 3)), permutation(torch.arange(6)).view(2, 3))


def chi_square_deviation(counts: torch.Tensor) -> float:
    """How many standard deviations the chi-square of ``counts`` lies from its mean under uniformity."""
    expected = counts.sum() / counts.numel()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.numel() - 1
    return float((chi_square - freedom) / math.sqrt(2 * freedom))


def test_the_first_elements_are_uniform():
    """Partial FC takes the first k elements as its sample: over many keys every element is as likely."""
    n, taken = 1000, 100
    counts = torch.zeros(n)
    for key in range(1000):
        counts += torch.bincount(
            KeyedPermutation(n, derive_key("test", key))(torch.arange(taken)), minlength=n
        )
    # A sample without replacement varies less than independent draws do, by 1 - taken / n.
    assert abs(chi_square_deviation(counts) + (taken / n) * math.sqrt((n - 1) / 2)) < 4


@pytest.mark.parametrize("n", [10, 97, 1000])
def test_neighbours_land_independently(n):
    """The pair (p(0), p(1)), in coarse cells, is uniform over keys."""
    cells, draws = 5, 1500
    counts = torch.zeros(cells, cells)
    pairs = torch.stack(
        [KeyedPermutation(n, derive_key("pair", key))(torch.arange(2)) for key in range(draws)]
    )
    edges = torch.arange(1, cells) * n // cells
    cell = torch.bucketize(pairs, edges, right=True)
    counts.view(-1).add_(torch.bincount(cell[:, 0] * cells + cell[:, 1], minlength=cells**2))
    sizes = torch.bincount(torch.bucketize(torch.arange(n), edges, right=True)).double()
    expected = (torch.outer(sizes, sizes) - torch.diag(sizes)) / (n * (n - 1)) * draws
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = cells**2 - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_small_n_reaches_every_order():
    orders = torch.stack(
        [KeyedPermutation(3, derive_key("small", key))(torch.arange(3)) for key in range(1200)]
    )
    counts = torch.bincount(orders @ torch.tensor([9, 3, 1]))
    counts = counts[counts > 0].float()
    assert len(counts) == 6 and abs(chi_square_deviation(counts)) < 4


def test_other_keys_give_other_orders():
    index_N = torch.arange(1000)
    orders = [KeyedPermutation(1000, key)(index_N) for key in (0, 1, 2**32, 2**62)]
    for i in range(4):
        for j in range(i):
            assert int((orders[i] == orders[j]).sum()) < 10
    assert torch.equal(KeyedPermutation(1000, 1)(index_N), orders[1])


def test_keys_depend_on_every_part_and_never_change():
    made = {derive_key(*parts) for parts in [(), (0,), (1,), ("0",), (0, 1), (1, 0), ("a", 0), ("a0",)]}
    assert len(made) == 8 and all(0 <= key < 2**63 for key in made)
    assert derive_key("sampler", 0, 0) == 7721410290196506209


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="n >= 1"):
        KeyedPermutation(0, 1)
