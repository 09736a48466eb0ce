import numpy as np
import pytest

from megaclass.errors import UserError
from megaclass.evaluation.pairs import generate_pairs


def labels_of(sizes, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))


def folds_of(pairs):
    return np.array_split(np.arange(len(pairs)), pairs.folds)


def check(pairs, labels):
    """What every generated set must hold: truth, balance fold by fold, no pair twice."""
    assert np.array_equal(labels[pairs.first] == labels[pairs.second], pairs.same)
    assert (pairs.first != pairs.second).all()
    unordered = {frozenset(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}
    assert len(unordered) == len(pairs)
    for fold in folds_of(pairs):
        half = len(fold) // 2
        assert pairs.same[fold[:half]].all() and not pairs.same[fold[half:]].any() and len(fold) == 2 * half


@pytest.mark.parametrize("sizes", [[20] * 60, [2] * 300, [500, *[2] * 100], list(range(1, 80)), [1] * 200 + [5] * 40])
def test_generated_pairs_are_balanced_and_folds_share_no_identity(sizes):
    labels = labels_of(sizes)
    pairs = generate_pairs(labels, 200, seed=3)
    check(pairs, labels)
    assert len(pairs) == 200
    owners = [set(labels[pairs.first[fold]]) | set(labels[pairs.second[fold]]) for fold in folds_of(pairs)]
    assert sum(map(len, owners)) == len(set().union(*owners))


def test_same_identity_pairs_spread_over_identities():
    labels = labels_of([400, *[4] * 99])
    pairs = generate_pairs(labels, 1000, seed=0)
    _, per_identity = np.unique(labels[pairs.first[pairs.same]], return_counts=True)
    assert len(per_identity) == 100 and per_identity.max() <= 6


def test_one_seed_is_one_list():
    labels = labels_of([10] * 50)
    one, again, other = (generate_pairs(labels, 400, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.first, again.first) and np.array_equal(one.second, again.second)
    assert not np.array_equal(one.first, other.first)


def test_few_identities_are_shared_by_the_folds_with_a_warning(caplog):
    labels = labels_of([30] * 6)
    pairs = generate_pairs(labels, 400, seed=0)
    check(pairs, labels)
    assert len(pairs) == 400
    assert "6 identities (6 with two images) are too few for 10 folds" in caplog.text


@pytest.mark.parametrize(("sizes", "count"), [([2] * 20, 40), ([3] * 20, 120), ([5] * 4, 80), ([9, 9], 140)])
def test_a_small_set_gives_all_it_has_and_says_so(caplog, sizes, count):
    labels = labels_of(sizes)
    pairs = generate_pairs(labels, 10_000, seed=0)
    check(pairs, labels)
    assert len(pairs) == count and f"10,000 pairs asked for, {count} drawn" in caplog.text


def test_as_many_pairs_as_asked_for_come_without_a_word(caplog):
    assert len(generate_pairs(labels_of([10] * 50), 239, seed=0)) == 220 and not caplog.text


@pytest.mark.parametrize("sizes", [[], [1] * 30, [30]])
def test_a_set_without_both_kinds_is_refused(sizes):
    with pytest.raises(UserError, match="too few pairs of one identity, or of two, for 10 folds"):
        generate_pairs(labels_of(sizes), 100, seed=0)
