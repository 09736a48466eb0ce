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

    Over all shards, ``max(sample_size, P)`` classes are sampled. Cost: O(sample_size) for the draw, and one
    byte a class of the shard to mark and collect what was drawn: no sort, and no draw per class.
    """
    permutation = KeyedPermutation(num_classes, key)
    device = labels_G.device
    label_G = labels_G.sort().values
    is_first_G = torch.ones_like(label_G, dtype=torch.bool)
    is_first_G[1:] = label_G[1:] != label_G[:-1]
    others = (sample_size - is_first_G.sum()).clamp(min=0)  # how many negatives fill the sample up

    # The shortest window of the permutation that holds that many non-positive classes: walking over the
    # positives in the order of their places, the i-th has (place - i) non-positive classes before it.
    place_G = torch.where(is_first_G, permutation.inverse(label_G), num_classes).sort().values
    before_G = place_G - torch.arange(len(place_G), device=device)
    window = others + ((before_G < others) & (place_G < num_classes)).sum()

    place_N = torch.arange(min(sample_size, num_classes), device=device)  # the window is never longer
    drawn_N = torch.where(place_N < window, permutation(place_N), start - 1)
    mark = torch.zeros(
        stop - start + 1, dtype=torch.bool, device=device
    )  # the last: what is not of this shard
    for classes in (label_G, drawn_N):
        mark[torch.where((classes >= start) & (classes < stop), classes - start, stop - start)] = True
    return mark[:-1].nonzero()[:, 0] + start  # host sync: the size of the sample decides shapes
