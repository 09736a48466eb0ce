"""Images whose labels look wrong to a trained margin head: by the cosine to the centre of their class, and to others.

Shapes: N = images, B = of a block, C = classes of a block of centres, K = sub-centres of a class, D = columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megaclass.data.dataset import DamagedSampleError, Dataset
from megaclass.errors import UserError
from megaclass.evaluation.evaluators import trained_labels
from megaclass.inference.model import Model

# Deng et al. drop what is further from the dominant sub-centre than a constant angle (arXiv:1801.07698v4, section 3.2:
# one of 70 to 80 degrees; their experiments take 75).
DROPPED_DEGREES = 75.0
_PASS_IMAGES = 2048  # share one reading of the centres


@dataclass(frozen=True)
class Judged:
    """Of each image of a set, NaN where it cannot be read.

    label_N: its class, as the model numbers them. cosine_N: to the centre of that class, of sub-centres to the dominant
    one: that to which most images of the class are nearest. other_N, other_cosine_N: the nearest other class.
    strays_N: whether another sub-centre of its class is nearer than the dominant one.
    """

    label_N: np.ndarray
    cosine_N: np.ndarray
    other_N: np.ndarray
    other_cosine_N: np.ndarray
    strays_N: np.ndarray

    @property
    def gap_N(self) -> np.ndarray:  # noqa: N802 - an array, named as one
        """By how much the nearest other class is nearer than their own."""
        return self.other_cosine_N - self.cosine_N

    def suspects(self, below: float | None, gap: float | None) -> np.ndarray:
        """The numbers of those with a cosine below the one or a gap above the other, where given, the worst first."""
        found_N = np.zeros(len(self.label_N), bool)
        if below is not None:
            found_N |= self.cosine_N < below
        if gap is not None:
            found_N |= self.gap_N > gap
        chosen = np.flatnonzero(found_N)
        return chosen[np.argsort(-self.gap_N[chosen], kind="stable")]


def judge(
    model: Model,
    dataset: Dataset,
    orientations: int,
    damaged: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Judged:
    """Compare every image of a labelled set with all centres. ``damaged`` is told what is wrong with one.

    orientations: the classes of the model are those of the set in as many orientations (``data.orientations``).
    UserError for a model without class centres, and for a set of other classes.
    """
    if model.rows is None:
        raise UserError(f"{model.source}: holds no class centres; name a run with a margin head, or its bundle")
    classes, of_class, count = model.num_classes // orientations, model.about.sub_centres, len(dataset)
    label_N = torch.from_numpy(trained_labels(dataset, classes, model.classes, "--data"))
    own_NK = torch.full((count, of_class), torch.nan)
    other_N, cosine_N = torch.zeros(count, dtype=torch.int64), torch.full((count,), torch.nan)
    held: list[Tensor] = []
    numbers: list[int] = []

    def compare() -> None:
        if numbers:
            rows_BD, place_B = F.normalize(torch.cat(held)), torch.tensor(numbers)
            found = _nearest(model, rows_BD, label_N[place_B].to(rows_BD.device), classes)
            own_NK[place_B], other_N[place_B], cosine_N[place_B] = (part.cpu() for part in found)
            held.clear()
            numbers.clear()

    for start, features in model.stream(dataset):
        if isinstance(features, DamagedSampleError):
            damaged(str(features))
            continue
        held.append(features)
        numbers.extend(range(start, start + len(features)))
        progress(numbers[-1] + 1, count)
        if len(numbers) >= _PASS_IMAGES:
            compare()
    compare()
    nearest_N, seen_N = own_NK.argmax(1), ~own_NK[:, 0].isnan()
    votes = torch.bincount((label_N * of_class + nearest_N)[seen_N], minlength=classes * of_class)
    dominant_N = votes.view(classes, of_class).argmax(1)[label_N]
    own_N, strays_N = own_NK.gather(1, dominant_N[:, None])[:, 0], (nearest_N != dominant_N) & seen_N
    return Judged(*(part.numpy() for part in (label_N, own_N, other_N, cosine_N, strays_N)))


def _nearest(model: Model, rows_BD: Tensor, label_B: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines to the centres of each label (B, K), the nearest other class (B,), and the cosine to that (B,)."""
    of_class = model.about.sub_centres
    own_BK = rows_BD.new_full((len(rows_BD), of_class), torch.nan)
    cosine_B, other_B = rows_BD.new_full((len(rows_BD),), -torch.inf), torch.zeros_like(label_B)
    for start, block_TD in model.centre_blocks(rows_BD.device):
        cosine_BCK = (rows_BD @ block_TD.T).unflatten(1, (-1, of_class))
        class_C = start // of_class + torch.arange(cosine_BCK.shape[1], device=rows_BD.device)
        row_B, column_B = (label_B[:, None] == class_C).nonzero(as_tuple=True)
        own_BK[row_B] = cosine_BCK[row_B, column_B]
        # A class turned round is none of the others.
        best = cosine_BCK.amax(2).masked_fill_(label_B[:, None] == class_C % classes, -torch.inf).max(1)
        other_B = torch.where(best.values > cosine_B, class_C[best.indices] % classes, other_B)
        cosine_B = torch.maximum(cosine_B, best.values)
    return own_BK, other_B, cosine_B
