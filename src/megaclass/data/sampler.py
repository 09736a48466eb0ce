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

_REPEATED = 16  # samples that come again together


class EpochSampler:
    """An endless stream over ``range(num_samples)`` that passes every sample once an epoch.

    ``repeats`` R above 1 is repeated augmentation (Hoffer et al., CVPR 2020; timm's RepeatAugSampler and torchvision's
    RASampler): a sample comes R times close to each other, each time under other random changes, and all samples have
    come after R epochs. 16 samples come, then again; neighbours, which mixup mixes, are others each time (R up to 7).
    """

    def __init__(self, num_samples: int, seed: int, shuffle: bool = True, repeats: int = 1) -> None:
        # Plain ints: the keys are derived from how numbers print, and numpy's print otherwise.
        self.num_samples = int(num_samples)
        self.seed = int(seed)
        self.shuffle = shuffle
        self.repeats = repeats

    def indices(self, number_K: np.ndarray) -> np.ndarray:
        """Data set indices of these samples of the stream, int64 of shape (K,)."""
        number_K = np.asarray(number_K, np.int64)
        if self.repeats > 1:
            block_K, place_K = np.divmod(number_K, self.repeats * _REPEATED)
            turn_K, place_K = np.divmod(place_K, _REPEATED)
            # In each turn every second sample is beside another one of the rest.
            number_K = block_K * _REPEATED + (place_K + 2 * turn_K * (place_K % 2)) % _REPEATED
        epoch_K, index_K = np.divmod(number_K, self.num_samples)
        for epoch in np.unique(epoch_K).tolist() if self.shuffle else ():
            in_epoch_K = epoch_K == epoch
            index_K[in_epoch_K] = _order(self.num_samples, self.seed, epoch)(index_K[in_epoch_K])
        return index_K


@functools.lru_cache(maxsize=4)
def _order(num_samples: int, seed: int, epoch: int) -> KeyedPermutation:
    return KeyedPermutation(num_samples, derive_key("sampler", seed, epoch))


def rank_part(step: int, global_batch_size: int, rank: int, world_size: int, micro_batches: int = 1) -> np.ndarray:
    """The samples of the stream that ``rank`` takes in ``step``, one micro-batch after the other, int64 (K,).

    Step s covers the stream's samples s * global_batch_size and on. It is cut into micro-batches first, of which
    ranks then take contiguous parts in order: each micro-batch holds the same samples at any world size, and what
    depends on it, such as statistics of synchronised norms, stays the same.
    """
    parts = world_size * micro_batches
    count, rest = divmod(global_batch_size, parts)
    if rest or count == 0:
        cut = f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
        raise UserError(
            f"a global batch of {global_batch_size} cannot be shared evenly by {world_size} ranks{cut}; "
            f"take a multiple of {parts}"
        )
    first_M1 = np.arange(rank, parts, world_size)[:, None] * count
    return step * global_batch_size + (first_M1 + np.arange(count)).ravel()


def drawn(count: int, wanted: int, what: str, seed: int) -> np.ndarray:
    """The first ``wanted`` of ``range(count)`` in an order that ``what`` and ``seed`` give, int64."""
    return KeyedPermutation(count, derive_key(what, seed))(np.arange(min(count, wanted)))
