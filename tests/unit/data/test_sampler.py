"""The sampler: complete epochs, any start, any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.data.sampler import EpochSampler, rank_part
from megaclass.errors import UserError


@pytest.mark.parametrize("num_samples", [1, 2, 3, 10, 257])
def test_each_epoch_passes_every_sample_once(num_samples):
    sampler = EpochSampler(num_samples, seed=1)
    stream = sampler.indices(np.arange(4 * num_samples)).reshape(4, num_samples)
    assert stream.dtype == np.int64
    assert (np.sort(stream, axis=1) == np.arange(num_samples)).all()
    if num_samples > 3:
        assert len({tuple(epoch) for epoch in stream.tolist()}) == 4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_the_stream_is_the_same_wherever_it_is_entered(num_samples, start, first, second, shuffle):
    sampler = EpochSampler(num_samples, seed=5, shuffle=shuffle)
    numbers = np.arange(start, start + first + second)
    whole = sampler.indices(numbers)
    pieces = [sampler.indices(numbers[:first]), sampler.indices(numbers[first:])]
    assert (np.concatenate(pieces) == whole).all() and len(whole) == first + second
    if not shuffle:
        assert (whole == numbers % num_samples).all()


def test_the_order_is_fixed_for_all_time():
    """A run that is resumed by a later version must go on with the same samples."""
    assert EpochSampler(10, seed=0).indices(np.arange(7, 13)).tolist() == [5, 3, 8, 9, 6, 4]
    numpys = EpochSampler(np.int64(10), seed=np.int64(0)).indices(np.arange(7, 13))
    assert numpys.tolist() == [5, 3, 8, 9, 6, 4]


@pytest.mark.parametrize("repeats", [2, 3, 7])
def test_a_repeated_sample_comes_soon_again_beside_another(repeats):
    plain, stream = (EpochSampler(160, 0, repeats=r).indices(np.arange(160 * r)) for r in (1, repeats))
    for block in range(10):
        of_block = stream.reshape(10, repeats, 16)[block]
        assert (np.sort(of_block, axis=1) == np.sort(plain[16 * block :][:16])).all()
    pairs = np.sort(stream.reshape(-1, 2), axis=1)  # that mixup takes
    assert (pairs[:, 0] < pairs[:, 1]).all() and len(np.unique(pairs, axis=0)) == len(pairs)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_a_micro_batch_is_the_same_at_any_number_of_ranks(world_size, micro_batches):
    parts = [rank_part(5, 12, rank, world_size, micro_batches) for rank in range(world_size)]
    by_rank = np.stack(parts).reshape(world_size, micro_batches, -1)
    assert by_rank.swapaxes(0, 1).ravel().tolist() == list(range(60, 72))


def test_a_batch_that_ranks_cannot_share_is_named():
    for batch in (10, 0):
        with pytest.raises(UserError, match=f"global batch of {batch} cannot be shared evenly by 4 ranks; "):
            rank_part(0, batch, 0, 4)
    with pytest.raises(UserError, match="by 2 ranks in 3 micro-batches; take a multiple of 6"):
        rank_part(0, 10, 0, 2, 3)
