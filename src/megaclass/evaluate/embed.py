"""Embed a set of images once, each rank its share, and give every rank the whole.

Shapes: B = images of a batch, L = images of this rank, N = images of the set, D = embedding columns.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaclass.errors import UserError
from megaclass.parallel.groups import all_ranks, rank, shard_range, together, world_size

logger = logging.getLogger(__name__)

Model = Callable[[Tensor], Tensor]
BatchesOfRange = Callable[[int, int], Iterator[Tensor]]


def embed(model: Model, batches_of_range: BatchesOfRange, count: int, flip: bool) -> Tensor:
    """Return the L2-normalised embeddings of images ``0 .. count-1``: (N, D), fp32, on the CPU of every rank.

    ``model`` maps normalised images (B, channels, height, width) to embeddings (B, D). Pass the bare
    module: a DistributedDataParallel wrapper talks to the other ranks in every forward pass, and ranks may
    differ in their number of batches. ``batches_of_range(start, stop)`` yields those images in order, on
    the model's device. ``flip`` adds the embedding of the mirrored image before normalising, as the
    verification of InsightFace does.

    A row with a NaN or an infinity becomes all NaN and is counted in a warning; the metrics take every
    comparison with it as wrong. An error of one rank (an unreadable image) is raised on all ranks.
    """
    if count < 1:
        raise UserError("evaluation: there is no image to embed")
    ranges = [shard_range(count, part, world_size()) for part in range(world_size())]
    start, stop = ranges[rank()]
    # More ranks than images: a rank without any embeds the first one all the same, to learn D and the device.
    first, last = (start, stop) if start < stop else (0, 1)

    rows_LD = together(lambda: _embed_range(model, batches_of_range, first, last, flip))
    longest = ranges[0][1]  # the collective wants equal shapes, and rank 0 holds the longest range
    padded = F.pad(rows_LD, (0, 0, 0, longest - len(rows_LD)))
    gathered = all_ranks().all_gather_rows(padded).cpu()
    pieces = [gathered[part * longest :][: stop - start] for part, (start, stop) in enumerate(ranges)]
    embeddings_ND = torch.cat(pieces)

    broken = int(embeddings_ND.isnan().any(dim=1).sum())
    if broken and rank() == 0:
        logger.warning("%d of %d embeddings are not finite; their comparisons count as wrong", broken, count)
    return embeddings_ND


def _embed_range(model: Model, batches_of_range: BatchesOfRange, start: int, stop: int, flip: bool) -> Tensor:
    """The normalised embeddings of images ``start .. stop-1``: (L, D), fp32, where the model put them."""
    batches: list[Tensor] = []
    with torch.inference_mode(), evaluating(model):
        for images in batches_of_range(start, stop):
            rows_BD = model(images).float()
            if flip:
                rows_BD = rows_BD + model(images.flip(-1)).float()
            batches.append(rows_BD)
    found = sum(len(rows_BD) for rows_BD in batches)
    if found != stop - start:
        raise UserError(
            f"evaluation: images {start} to {stop - 1} gave {found} embeddings; is one unreadable?"
        )
    # Outside inference mode, so that the caller receives ordinary tensors.
    rows_LD = torch.cat(batches)
    finite_L1 = rows_LD.isfinite().all(dim=1, keepdim=True)
    return torch.where(finite_L1, F.normalize(rows_LD), torch.nan)


@contextlib.contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode within, and afterwards, also after an error, each submodule as it was: some may be
    frozen on purpose. A ``model`` that is no module has no modes."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
