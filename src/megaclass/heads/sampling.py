"""Which classes Partial FC scores in a step (An et al., CVPR 2022, arXiv:2203.15565, section 3.2).

Every class that occurs in the global batch, and a uniform sample without replacement of the others.
The sample is the beginning of a keyed permutation of all classes, so it depends on the key alone: every
rank finds its own part without communication, without a draw per class and without a sort over all
classes, and a run continued on another number of ranks draws the same classes.

Shapes: G = labels of the whole step, P = distinct classes among them, N = sampled classes of the shard.
"""

import torch
from torch import Tensor

from megaclass.parallel.seeding import KeyedPermutation

_WALK = 1 << 16  # places walked at a time on a CPU: each takes a dozen integers meanwhile


class TorchWalker:
    """How a device evaluates the permutation: on any; on CUDA each turn of cycle walking is a host sync.

    A mark is a bool tensor with an element for each class of the shard, from class ``start`` on, and one more.
    """

    def inverse(self, permutation: KeyedPermutation, element_N: Tensor) -> Tensor:
        """The places of the elements, int64."""
        return permutation.inverse(element_N)

    def mark(self, permutation: KeyedPermutation, window: Tensor, limit: int, start: int, mark: Tensor) -> None:
        """Mark the classes at places below ``window``, an int64 scalar of at most ``limit``."""
        step = _WALK if mark.device.type == "cpu" else max(1, limit)
        for first in range(0, limit, step):
            place_N = torch.arange(first, min(first + step, limit), device=mark.device)
            _mark(mark, start, torch.where(place_N < window, permutation(place_N), start - 1))


def _mark(mark: Tensor, start: int, class_N: Tensor) -> None:
    """Without a host sync: classes of other shards share the last element."""
    count = len(mark) - 1
    inside_N = (class_N >= start) & (class_N < start + count)
    mark[torch.where(inside_N, class_N - start, count)] = True


def sample_classes(
    labels_G: Tensor,
    num_classes: int,
    sample_size: int,
    key: int,
    start: int,
    stop: int,
    walker: TorchWalker | None = None,
) -> Tensor:
    """The sampled classes within ``[start, stop)``, sorted, int64 of shape (N,), on the labels' device.

    Over all shards, ``max(sample_size, P)`` classes are sampled. Cost: O(sample_size) for the draw, and one
    byte a class of the shard to mark and collect what was drawn: no sort, and no draw per class.
    """
    permutation = KeyedPermutation(num_classes, key)
    device = labels_G.device
    walker = walker or TorchWalker()
    label_G = labels_G.sort().values
    is_first_G = torch.ones_like(label_G, dtype=torch.bool)
    is_first_G[1:] = label_G[1:] != label_G[:-1]
    others = (sample_size - is_first_G.sum()).clamp(min=0)  # how many negatives fill the sample up

    # The shortest window of the permutation that holds that many non-positive classes: walking over the
    # positives in the order of their places, the i-th has (place - i) non-positive classes before it.
    place_G = torch.where(is_first_G, walker.inverse(permutation, label_G), num_classes).sort().values
    before_G = place_G - torch.arange(len(place_G), device=device)
    window = others + ((before_G < others) & (place_G < num_classes)).sum()

    mark = torch.zeros(stop - start + 1, dtype=torch.bool, device=device)
    _mark(mark, start, label_G)
    walker.mark(permutation, window, min(sample_size, num_classes), start, mark)  # the window is never longer
    return mark[:-1].nonzero()[:, 0] + start  # host sync: the size of the sample decides shapes
