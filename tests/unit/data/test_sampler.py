"""The sampler: complete epochs, any start, any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.data.sampler import EpochSampler, rank_slice
from megaclass.errors import UserError


@pytest.mark.parametrize("num_samples", [1, 2, 3, 10, 257])
def test_each_epoch_passes_every_sample_once(num_samples):
    sampler = EpochSampler(num_samples, seed=1)
    stream = sampler.indices(0, 4 * num_samples).reshape(4, num_samples)
    assert stream.dtype == np.int64
    assert (np.sort(stream, axis=1) == np.arange(num_samples)).all()
    if num_samples > 3:
        assert len({tuple(epoch) for epoch in stream.tolist()}) == 4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_the_stream_is_the_same_wherever_it_is_entered(num_samples, start, first, second, shuffle):
    sampler = EpochSampler(num_samples, seed=5, shuffle=shuffle)
    whole = sampler.indices(start, first + second)
    pieces = [sampler.indices(start, first), sampler.indices(start + first, second)]
    assert (np.concatenate(pieces) == whole).all() and len(whole) == first + second
    if not shuffle:
        assert (whole == np.arange(start, start + first + second) % num_samples).all()


def test_the_order_is_fixed_for_all_time():
    """A run that is resumed by a later version must go on with the same samples."""
    assert EpochSampler(10, seed=0).indices(7, 6).tolist() == [5, 3, 8, 9, 6, 4]
    numpys = EpochSampler(np.int64(10), seed=np.int64(0)).indices(np.int64(7), np.int64(6))
    assert numpys.tolist() == [5, 3, 8, 9, 6, 4]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_ranks_share_the_global_batch(world_size):
    parts = [rank_slice(5, 12, rank, world_size) for rank in range(world_size)]
    assert [i for start, count in parts for i in range(start, start + count)] == list(range(60, 72))


def test_a_batch_that_ranks_cannot_share_is_named():
    for batch in (10, 0):
        with pytest.raises(UserError, match=f"global batch of {batch} cannot be shared evenly by 4 ranks"):
            rank_slice(0, batch, 0, 4)
