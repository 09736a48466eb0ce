"""Embed a set of images once, each rank its share, and give every rank the whole.

Shapes: B = images of a batch, L = images of this rank, N = images of the set, D = embedding columns.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaclass.evaluation.blocks import shown
from megaclass.parallel.groups import all_ranks, rank, shard_range, together, world_size

logger = logging.getLogger(__name__)

Model = Callable[[Tensor], Tensor]
BatchesOfRange = Callable[[int, int], Iterator[Tensor]]


def embed(model: Model, batches_of_range: BatchesOfRange, count: int, flip: bool, normalised: bool = True) -> Tensor:
    """Return the embeddings of images ``0 .. count-1``: (N, D), fp32, on the CPU of every rank; ``normalised``: of
    length 1, else as the model gives them.

    ``model`` maps normalised images (B, channels, height, width) to embeddings (B, D). Pass the bare
    module: a DistributedDataParallel wrapper talks to the other ranks in every forward pass, and ranks may
    differ in their number of batches. ``batches_of_range(start, stop)`` yields those images in order, on
    the model's device. ``flip``: see :func:`features`.

    A row with a NaN or an infinity becomes all NaN and is counted in a warning; the metrics take every
    comparison with it as wrong. An error of one rank (an unreadable image) is raised on all ranks.
    """
    ranges = [shard_range(count, part, world_size()) for part in range(world_size())]
    start, stop = ranges[rank()]
    # More ranks than images: a rank without any embeds the first one all the same, to learn D and the device.
    first, last = (start, stop) if start < stop else (0, 1)

    def mine() -> Tensor:
        batches: list[Tensor] = []
        with torch.inference_mode():
            for images in batches_of_range(first, last):
                batches.append(features(model, images, flip))
                shown(sum(map(len, batches)), count)
        return torch.cat(batches)  # outside inference mode, so that the caller receives ordinary tensors

    rows_LD = together(mine)
    sound_L1 = rows_LD.isfinite().all(dim=1, keepdim=True)
    rows_LD = torch.where(sound_L1, F.normalize(rows_LD) if normalised else rows_LD, torch.nan)
    longest = ranges[0][1]  # the collective wants equal shapes, and rank 0 holds the longest range
    padded = F.pad(rows_LD, (0, 0, 0, longest - len(rows_LD)))
    gathered = all_ranks().all_gather_rows(padded).cpu()
    pieces = [gathered[part * longest :][: stop - start] for part, (start, stop) in enumerate(ranges)]
    embeddings_ND = torch.cat(pieces)

    broken = int(embeddings_ND.isnan().any(dim=1).sum())
    if broken and rank() == 0:
        logger.warning("%d of %d embeddings are not finite; their comparisons count as wrong", broken, count)
    return embeddings_ND


def features(model: Model, images_BCHW: Tensor, flip: bool) -> Tensor:
    """Embeddings before they are normalised, fp32 (B, D). ``flip``: the mean with those of the mirrored images. At
    length 1 it is InsightFace's sum; through a linear layer it is the mean of their logits, by which ffcv classifies.
    """
    rows_BD = model(images_BCHW).float()
    return (rows_BD + model(images_BCHW.flip(-1)).float()) / 2 if flip else rows_BD


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within, and afterwards, also after an error, each submodule as it was: some may be
    frozen on purpose."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
