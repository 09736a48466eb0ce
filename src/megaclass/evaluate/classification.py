"""Top-1 and top-5 accuracy of a classifier.

Shapes: B = images of a batch, C = classes.
"""

import torch
from torch import Tensor

from megaclass.errors import UserError
from megaclass.parallel.groups import all_ranks


def topk_counts(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the int64 counts ``[top-1 hits, top-5 hits, images]`` of one batch, on the logits' device.

    Counts of batches add up. With fewer than five classes, "top 5" means all of them. A row that holds a
    NaN is a miss (a plain top-k would rank the NaN first).
    """
    best_BK = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
    hits_BK = (best_BK == labels_B[:, None]) & ~logits_BC.isnan().any(dim=1, keepdim=True)
    images = torch.tensor(len(labels_B), device=logits_BC.device)
    return torch.stack([hits_BK[:, 0].sum(), hits_BK.sum(), images])


def classification_metrics(counts: Tensor) -> dict[str, float]:
    """Return ``{"top1", "top5"}`` in 0..1 over the images of all ranks, from each rank's summed counts.

    ``counts`` is what :func:`topk_counts` returned, summed over this rank's batches; a rank without images
    brings zeros. Every rank must call. Raises UserError if no rank had an image.
    """
    top1, top5, images = all_ranks().all_reduce_(counts.clone()).tolist()
    if images == 0:
        raise UserError("evaluation: there is no image to classify")
    return {"top1": top1 / images, "top5": top5 / images}
