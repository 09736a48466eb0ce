"""The head in its plainest form: dense, fp64, one process, autograd. Everything else is held to it.

Shapes: B = rows of the batch, C = classes, D = embedding columns.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from megaclass.heads.margins import Margin


def dense_loss(
    embeddings_BD: Tensor, labels_B: Tensor, centres_CD: Tensor, margin: Margin, classes: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy over the batch, with the B x C logits in memory.

    classes: the sampled classes of Partial FC (int64, any order, all labels included); None takes all.
    """
    centres_CD = centres_CD.double()
    if classes is not None:
        position_C = torch.full((len(centres_CD),), -1, dtype=torch.int64)
        position_C[classes] = torch.arange(len(classes))
        centres_CD, labels_B = centres_CD[classes], position_C[labels_B]
    cos_BC = normalize(embeddings_BD.double()) @ normalize(centres_CD).T
    is_target_BC = torch.zeros_like(cos_BC, dtype=torch.bool).scatter_(1, labels_B[:, None], True)
    theta_BC = torch.acos(cos_BC.clamp(-1 + 1e-15, 1 - 1e-15))
    target_BC = torch.cos(margin.m1 * theta_BC + margin.m2) - margin.m3
    if margin.gradient == "straight_through":
        target_BC = cos_BC + (target_BC - cos_BC).detach()
    logits_BC = margin.scale * torch.where(is_target_BC, target_BC, cos_BC)
    if margin.filter_threshold:
        logits_BC = logits_BC.masked_fill(~is_target_BC & (cos_BC > margin.filter_threshold), -torch.inf)
    return cross_entropy(logits_BC, labels_B)
