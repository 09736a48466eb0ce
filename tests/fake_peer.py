"""A stand-in for arcface_torch's two files: their classes and signatures, in the smallest arithmetic."""

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


def write(folder):
    """The files where the root of the peer's repository has them; returns that root."""
    inside = folder / "recognition" / "arcface_torch"
    inside.mkdir(parents=True)
    (inside / "losses.py").write_text(LOSSES)
    (inside / "partial_fc_v2.py").write_text(PARTIAL_FC)
    return folder
