"""The linear classification head: every class on every rank, trained by the backbone's optimizer.

Shapes: b = rows of this rank's batch, D = feature columns, C = classes. ``targets`` are labels, int64 (b,), or
the probabilities of all classes, floats (b, C), as mixed images have them.
"""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from megaclass.parallel import groups


class LinearHead(nn.Linear):
    """Logits ``features @ weight.T + bias`` and the mean cross-entropy over the global batch.

    label_smoothing: the share of the target, of mixed ones too, that is spread evenly over all classes
    (Szegedy et al., CVPR 2016, section 7). Weight and bias carry torchvision's ``fc.`` names and initialisation.
    """

    def __init__(self, num_classes: int, embedding_dim: int, label_smoothing: float = 0.0) -> None:
        super().__init__(embedding_dim, num_classes)
        self.label_smoothing = label_smoothing

    def draw(self, labels_b: Tensor) -> None:
        """Nothing to draw: every class is scored in every step."""

    def logits(self, features_bD: Tensor) -> Tensor:
        return linear(features_bD, self.weight, self.bias)

    def forward(self, features_bD: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        loss = cross_entropy(self.logits(features_bD).float(), targets, label_smoothing=self.label_smoothing)
        # The value of the global mean with the gradient of this rank's part: DistributedDataParallel
        # averages the gradients, and every rank sees the same loss when it decides to skip a step.
        mean = groups.all_ranks().all_reduce_(loss.detach().clone(), "mean")
        return loss + (mean - loss.detach())
