"""The linear classification head: every class on every rank, trained by the backbone's optimizer.

Shapes: b = rows of this rank's batch, D = feature columns, C = classes. ``targets`` are labels, int64 (b,), or
the probabilities of all classes, floats (b, C), as mixed images have them.
"""

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear, one_hot

from megaclass.parallel import groups


class LinearHead(nn.Linear):
    """Logits ``features @ weight.T + bias`` and the mean loss over the global batch.

    label_smoothing: the share of the target, of mixed ones too, that is spread evenly over all classes
    (Szegedy et al., CVPR 2016, section 7). Weight and bias carry torchvision's ``fc.`` names and initialisation.

    loss: "softmax", or "bce": the mean over classes of one binary cross-entropy each ("ResNet strikes
    back", Wightman et al., 2021, section 2), whose targets become 1 where they are above ``bce_threshold`` and 0
    elsewhere, as timm's ``BinaryCrossEntropy`` has it; at 0 they stay as they are.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        label_smoothing: float = 0.0,
        loss: str = "softmax",
        bce_threshold: float = 0.0,
    ) -> None:
        super().__init__(embedding_dim, num_classes)
        self.label_smoothing, self.loss, self.bce_threshold = label_smoothing, loss, bce_threshold

    def draw(self, labels_b: Tensor) -> None:
        """Nothing to draw: every class is scored in every step."""

    def logits(self, features_bD: Tensor) -> Tensor:
        return linear(features_bD, self.weight, self.bias)

    def forward(self, features_bD: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        logits_bC = self.logits(features_bD).float()
        if self.loss == "bce":
            loss = binary_cross_entropy_with_logits(logits_bC, self._binary(targets))
        else:
            loss = cross_entropy(logits_bC, targets, label_smoothing=self.label_smoothing)
        # The value of the global mean with the gradient of this rank's part: DistributedDataParallel
        # averages the gradients, and every rank sees the same loss when it decides to skip a step.
        mean = groups.all_ranks().all_reduce_(loss.detach().clone(), "mean")
        return loss + (mean - loss.detach())

    def _binary(self, targets: Tensor) -> Tensor:
        """What each class's own cross-entropy is to reach, fp32 (b, C)."""
        if targets.ndim == 1:
            targets = one_hot(targets, self.out_features)
        targets_bC = targets.float() * (1 - self.label_smoothing) + self.label_smoothing / self.out_features
        return (targets_bC > self.bce_threshold).float() if self.bce_threshold else targets_bC
