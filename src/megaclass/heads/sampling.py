"""Which classes Partial FC scores in a step (An et al., CVPR 2022, arXiv:2203.15565, section 3.2).

Every class that occurs in the global batch, and a uniform sample without replacement of the others.
The sample is the beginning of a keyed permutation of all classes, so it depends on the key alone: every
rank finds its own part without communication, without a draw per class and without a sort over all
classes, and a run continued on another number of ranks draws the same classes.

Shapes: G = labels of the whole step, P = distinct classes among them, N = sampled classes of the shard.
"""

import torch
from torch import Tensor

from megaclass.permutation import KeyedPermutation


def sample_classes(
    labels_G: Tensor, num_classes: int, sample_size: int, key: int, start: int, stop: int
) -> Tensor:
    """The sampled classes within ``[start, stop)``, sorted, int64 of shape (N,), on the labels' device.

    Over all shards, ``max(sample_size, P)`` classes are sampled. Cost: O(sample_size), whatever the
    number of classes.
    """
    positive_P = torch.unique(labels_G)
    permutation = KeyedPermutation(num_classes, key)
    others = max(0, sample_size - len(positive_P))  # how many negatives fill the sample up

    # The shortest window of the permutation that holds that many non-positive classes: walking over the
    # positives in the order of their places, the i-th has (place - i) non-positive classes before it.
    place_P = permutation.inverse(positive_P).sort().values
    inside = (place_P - torch.arange(len(place_P), device=place_P.device)) < others
    window = others + int(inside.sum())  # host sync: the size of the sample decides shapes

    drawn_N = permutation(torch.arange(window, device=labels_G.device))
    local_N = torch.cat([positive_P, drawn_N])
    local_N = local_N[(local_N >= start) & (local_N < stop)]
    return torch.unique(local_N)  # sorts the sample only; sorted rows are read and written in memory order
