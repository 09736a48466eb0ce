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
        # Plain ints: the keys are derived from how numbers print, and numpy's print otherwise.
        self.num_samples = int(num_samples)
        self.seed = int(seed)
        self.shuffle = shuffle

    def indices(self, start: int, count: int) -> np.ndarray:
        """Data set indices of the stream's samples ``start .. start + count - 1``, int64 of shape (K,)."""
        start, stop = int(start), int(start + count)
        pieces_K = [np.empty(0, np.int64)]
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            position_K = np.arange(offset, min(self.num_samples, offset + stop - start))
            order = _order(self.num_samples, self.seed, epoch)
            pieces_K.append(order(position_K) if self.shuffle else position_K)
            start += len(position_K)
        return np.concatenate(pieces_K)


@functools.lru_cache(maxsize=4)
def _order(num_samples: int, seed: int, epoch: int) -> KeyedPermutation:
    return KeyedPermutation(num_samples, derive_key("sampler", seed, epoch))


def rank_slice(step: int, global_batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part (start, count) of the stream that ``rank`` takes in ``step``.

    Step s covers the stream's samples s * global_batch_size and on; ranks take contiguous parts of it in
    order, so that together they take the same samples at any world size.
    """
    count, rest = divmod(global_batch_size, world_size)
    if rest or count == 0:
        raise UserError(
            f"a global batch of {global_batch_size} cannot be shared evenly by {world_size} ranks; "
            f"take a multiple of {world_size}"
        )
    return step * global_batch_size + rank * count, count


def drawn(count: int, wanted: int, what: str, seed: int) -> np.ndarray:
    """The first ``wanted`` of ``range(count)`` in an order that ``what`` and ``seed`` give, int64."""
    return KeyedPermutation(count, derive_key(what, seed))(np.arange(min(count, wanted)))
