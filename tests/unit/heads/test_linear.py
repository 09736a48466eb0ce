import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from megaclass.heads.linear import LinearHead

CLASSES, DIM = 7, 5


def head_and_features(label_smoothing=0.0):
    torch.manual_seed(0)
    head = LinearHead(CLASSES, DIM, label_smoothing)
    return head, torch.randn(4, DIM), torch.tensor([2, 0, 6, 2])


def by_hand(head, features, targets_bC):
    """Mean cross-entropy with smoothed targets, in fp64 numpy."""
    x = features.numpy().astype(np.float64)
    logits = x @ head.weight.detach().numpy().astype(np.float64).T + head.bias.detach().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    smooth = (1 - head.label_smoothing) * np.asarray(targets_bC, np.float64) + head.label_smoothing / CLASSES
    return -(smooth * log_p).sum(1).mean()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_labels_and_probabilities_are_scored_as_by_hand(label_smoothing):
    head, features, labels = head_and_features(label_smoothing)
    hard = one_hot(labels, CLASSES).float()
    mixed = 0.7 * hard + 0.3 * hard.flip(0)
    assert head(features, labels).item() == pytest.approx(by_hand(head, features, hard), rel=1e-6)
    assert head(features, hard).item() == pytest.approx(by_hand(head, features, hard), rel=1e-6)
    assert head(features, mixed).item() == pytest.approx(by_hand(head, features, mixed), rel=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.65])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_timms(label_smoothing, threshold):
    _, features, labels = head_and_features()
    torch.manual_seed(0)
    head = LinearHead(CLASSES, DIM, label_smoothing, "bce", threshold)
    hard = one_hot(labels, CLASSES).double()
    for given, targets in ((labels, hard), (0.7 * hard + 0.3 * hard.flip(0),) * 2):
        wanted = (1 - label_smoothing) * targets + label_smoothing / CLASSES
        if threshold:
            wanted = (wanted > threshold).double()
        z = head.double().logits(features.double())
        by_hand = -(wanted * torch.log(torch.sigmoid(z)) + (1 - wanted) * torch.log(1 - torch.sigmoid(z))).mean()
        loss = head.float()(features, given if given is labels else given.float())
        assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
