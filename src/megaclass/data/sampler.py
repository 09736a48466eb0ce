"""Which sample comes when: an order that depends on the seed and the epoch alone.

The run is one endless stream of samples, numbered from 0. Sample g lies in epoch g // n, and each epoch is a
keyed permutation of the data set. So any place of the stream costs the same to reach, nothing is held in
memory, and the number of ranks only decides who takes which part of a step.

Shapes: K = samples asked for.
"""

import functools

import numpy as np

from megaclass.errors import UserError
from megaclass.parallel.seeding import KeyedPermutation, derive_key


class EpochSampler:
    """An endless stream over ``range(num_samples)`` that passes every sample once an epoch."""

    def __init__(self, num_samples: int, seed: int, shuffle: bool = True) -> None:
        if num_samples < 1:
            raise UserError(f"a sampler needs at least one sample, got {num_samples}; check the data set")
        # Plain ints: the keys are derived from how numbers print, and numpy's print otherwise.
        self.num_samples = int(num_samples)
        self.seed = int(seed)
        self.shuffle = shuffle

    def indices(self, start: int, count: int) -> np.ndarray:
        """Data set indices of the stream's samples ``start .. start + count - 1``, int64 of shape (K,)."""
        if start < 0 or count < 0:
            raise ValueError(f"the stream has no samples {start} to {start + count}")
        start, stop = int(start), int(start + count)
        pieces_K = [np.empty(0, np.int64)]
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            taken = min(self.num_samples - offset, stop - start)
            pieces_K.append(self._epoch_slice(epoch, offset, taken))
            start += taken
        return np.concatenate(pieces_K)

    def _epoch_slice(self, epoch: int, offset: int, count: int) -> np.ndarray:
        position_K = np.arange(offset, offset + count)
        return _order(self.num_samples, self.seed, epoch)(position_K) if self.shuffle else position_K


@functools.lru_cache(maxsize=4)
def _order(num_samples: int, seed: int, epoch: int) -> KeyedPermutation:
    return KeyedPermutation(num_samples, derive_key("sampler", seed, epoch))


def rank_slice(step: int, global_batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part (start, count) of the stream that ``rank`` takes in ``step``.

    Step s covers the stream's samples s * global_batch_size and on; ranks take contiguous parts of it in
    order, so that together they take the same samples at any world size.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} does not exist")
    count, rest = divmod(global_batch_size, world_size)
    if rest or count == 0:
        raise UserError(
            f"a global batch of {global_batch_size} cannot be shared evenly by {world_size} ranks; "
            f"take a multiple of {world_size}"
        )
    return step * global_batch_size + rank * count, count
