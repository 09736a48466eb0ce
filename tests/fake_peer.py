"""A stand-in for arcface_torch's files: their classes and signatures, in the smallest arithmetic."""

LOSSES = """
class CombinedMarginLoss:
    def __init__(self, s, m1, m2, m3, interclass_filtering_threshold=0):
        self.s = s
"""

PARTIAL_FC = """
import torch
from torch import distributed


class PartialFC_V2(torch.nn.Module):
    def __init__(self, margin_loss, embedding_size, num_classes, sample_rate=1.0, fp16=False):
        super().__init__()
        self.margin, self.num_classes = margin_loss, num_classes
        self.weight = torch.nn.Parameter(torch.normal(0, 0.01, (num_classes, embedding_size)))

    def forward(self, embeddings, labels):
        gathered = [torch.zeros_like(labels).cuda() for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, labels)
        labels = torch.where(labels < self.num_classes, labels, 0)
        return torch.nn.functional.cross_entropy(self.margin.s * embeddings @ self.weight.T, labels.cuda())
"""


# A package with an import of its own inside, as the peer's.
BACKBONES = """
from .tiny import tiny


def get_model(name, **kwargs):
    assert name in ("r18", "mbf"), name
    return tiny(**kwargs)
"""

TINY = """
from torch import nn


def tiny(dropout, fp16, num_features):
    assert fp16 is False, "on a CPU"
    pooled = nn.Sequential(nn.AvgPool2d(16), nn.Flatten())
    return nn.Sequential(pooled, nn.Linear(3 * 7 * 7, num_features), nn.BatchNorm1d(num_features))
"""

# With the argument that PyTorch's own scheduler has dropped.
LR_SCHEDULER = """
from torch.optim.lr_scheduler import _LRScheduler


class PolynomialLRWarmup(_LRScheduler):
    def __init__(self, optimizer, warmup_iters, total_iters=5, power=1.0, last_epoch=-1, verbose=False):
        super().__init__(optimizer, last_epoch=last_epoch, verbose=verbose)
        assert 0 <= warmup_iters < total_iters

    def get_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]
"""


def write(folder):
    """The files where the root of the peer's repository has them; returns that root."""
    inside = folder / "recognition" / "arcface_torch"
    (inside / "backbones").mkdir(parents=True)
    (inside / "losses.py").write_text(LOSSES)
    (inside / "partial_fc_v2.py").write_text(PARTIAL_FC)
    (inside / "lr_scheduler.py").write_text(LR_SCHEDULER)
    (inside / "backbones" / "__init__.py").write_text(BACKBONES)
    (inside / "backbones" / "tiny.py").write_text(TINY)
    return folder
