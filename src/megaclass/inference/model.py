"""A trained model ready for use: it embeds, classifies and compares images.

Shapes: B = images of a batch, N = images, T = centres of a block, D = embedding columns, C = classes, K = guesses.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaclass.data.dataset import DamagedSampleError, Dataset
from megaclass.data.faces import Aligned, FaceDetector
from megaclass.data.preprocessing import Preprocessing
from megaclass.errors import UserError
from megaclass.evaluation.embed import evaluating, features
from megaclass.evaluation.evaluators import ImageReader
from megaclass.heads.linear import LinearHead
from megaclass.inference.about import About
from megaclass.inference.images import Pictures

_BLOCK_CENTRES = 8192


class Guess(NamedTuple):
    """A class of an image: its number, its name where it has one, and how sure the model is (a probability of a linear
    head, trained with ``bce`` that of this class alone; the cosine of a class centre)."""

    label: int
    name: str | None
    score: float


class GivenLogits(nn.Module):
    """The head of a network that gives logits itself, as an exported classifier does."""

    def logits(self, logits_BC: Tensor) -> Tensor:
        return logits_BC


def nearest(
    queries_ND: Tensor, blocks: Iterable[tuple[int, Tensor]], count: int, of_class: int = 1
) -> tuple[Tensor, Tensor]:
    """Of the rows in blocks, (T, D) each after the number of its first, those of the largest products with each query:
    their numbers, int64, and the products (N, K), the largest first. K is ``count``, or all rows. of_class: as many
    rows are numbered as one, of the largest of their products."""
    best_NK = queries_ND.new_empty((len(queries_ND), 0))
    numbers_NK = torch.empty_like(best_NK, dtype=torch.int64)
    for start, block_TD in blocks:
        products_NT = queries_ND @ block_TD.T
        if of_class > 1:
            products_NT = products_NT.unflatten(1, (-1, of_class)).amax(2)
        found = products_NT.topk(min(count, products_NT.shape[1]))
        best_NK = torch.cat([best_NK, found.values], 1)
        numbers_NK = torch.cat([numbers_NK, found.indices + start // of_class], 1)
        best_NK, kept_NK = best_NK.topk(min(count, best_NK.shape[1]))
        numbers_NK = numbers_NK.gather(1, kept_NK)
    return numbers_NK, best_NK


@dataclass(frozen=True, eq=False)
class Model:
    """What :func:`megaclass.load` gives.

    Images are one, or a sequence, of: a path; a PIL image; a NumPy array of uint8 (height, width, 3), RGB; a tensor of
    uint8 or of 0..1 (3, height, width). One that cannot be read is a UserError.

    source: what it was loaded from. backbone: normalised images (B, 3, H, W) -> features (B, D). head: of a
    classifier. rows: centres ``start .. stop-1`` of a margin head, fp32 (T, D), where these came along; the sub-centres
    of a class follow each other.
    detector: see :meth:`aligning`.
    """

    source: str
    about: About
    backbone: nn.Module
    reader: ImageReader
    head: LinearHead | GivenLogits | None = None
    rows: Callable[[int, int], Tensor] | None = field(default=None, repr=False)
    detector: FaceDetector | None = None

    def aligning(self, detector: str | Path) -> "Model":
        """The same for photographs of people: of each it sees the largest face, set upright, which a YuNet file finds;
        one without a face is as one that cannot be read. The model itself where no file is named. UserError."""
        return replace(self, detector=FaceDetector(detector)) if str(detector) else self

    def seen(self, dataset: Dataset) -> Dataset:
        """A data set as the model sees it: its images, or the faces on them."""
        if self.detector is None:
            return dataset
        return Aligned(dataset, self.detector, self.preprocessing.height, self.preprocessing.width)

    def embed(self, images: Any) -> np.ndarray:
        """L2-normalised embeddings, fp32 (N, D): their products are cosines. Of one image, N is 1."""
        self.require_embeddings()
        return F.normalize(self._features(images)).numpy()

    def require_embeddings(self) -> None:
        """UserError for the export of a classifier, which gives logits."""
        if isinstance(self.head, GivenLogits):
            raise UserError(f"{self.source}: gives classes alone, no embeddings; take the run, or a bundle of it")

    def classify(self, images: Any, top: int = 5) -> list[list[Guess]]:
        """The ``top`` best classes of each image, the best first: by probability, or by the cosine of class centres.

        Raises UserError where the model has neither a linear head nor centres.
        """
        labels_NK, scores_NK = self.best(self._features(images), top)
        return [
            [Guess(label, self.classes[label] if self.classes else None, score) for label, score in zip(*row)]  # noqa: B905
            for row in zip(labels_NK.tolist(), scores_NK.tolist(), strict=True)
        ]

    def compare(self, a: Any, b: Any) -> Any:
        """The cosine of two images, a float; of two sequences of N images, or one and N, that of each pair, fp32 (N,).

        At or above :attr:`threshold` they show one identity.
        """
        first, second = self.embed(a), self.embed(b)
        if len(first) != len(second) and 1 not in (len(first), len(second)):
            raise UserError(f"compare: {len(first)} images and {len(second)}; give as many, or one")
        cosines = (first * second).sum(1)
        return float(cosines[0]) if len(cosines) == 1 else cosines

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes in label order, where they have any."""
        return self.about.classes

    @property
    def num_classes(self) -> int:
        return self.about.num_classes

    @property
    def embedding_dim(self) -> int:
        return self.about.embedding_dim

    @property
    def preprocessing(self) -> Preprocessing:
        return self.about.preprocessing

    @property
    def threshold(self) -> float | None:
        """The cosine at or above which two images are of one identity, as the run's evaluation found it; None where
        nothing was verified."""
        return self.about.threshold

    @property
    def thresholds(self) -> dict[str, float]:
        """The same for a false accept rate, as ``{"1e-3": 0.31}``."""
        return self.about.thresholds

    @functools.cached_property
    def centres(self) -> Tensor | None:
        """L2-normalised centres of a margin head, fp32 (C, D), read when they are first asked for; with K sub-centres
        (C * K, D), those of class c from row c * K on."""
        if self.rows is None:
            return None
        return torch.cat([centres_TD for _, centres_TD in self.centre_blocks("cpu")])

    @property
    def measure(self) -> str:
        """What a score is: ``probability`` or ``cosine``."""
        return "cosine" if self.head is None else "probability"

    def stream(self, dataset: Dataset) -> Iterator[tuple[int, Tensor | DamagedSampleError]]:
        """Features (B, D) of all images of a data set, fp32, not normalised, batch by batch: each with the number of
        its first image. An image that cannot be read is an error in the place of features, and the others go on."""
        model = functools.partial(self.reader.features, self.backbone)
        with torch.inference_mode(), evaluating(self.backbone):
            for number, found in self._batches(self.seen(dataset)):
                if isinstance(found, Tensor):
                    found = features(model, found, self.about.flip)
                yield number, found

    def best(self, features_ND: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """Labels and scores (N, K) of the best classes by features as :meth:`stream` gives them, best first."""
        if top < 1:
            raise UserError(f"top: {top} is too few; ask for 1 class or more")
        if self.head is not None:
            logits_NC = self.head.logits(features_ND.to(self.reader.device))
            # Ordered by logits: of probabilities that round to 0 or 1, many are equal.
            labels_NK = logits_NC.topk(min(top, self.num_classes)).indices
            scores_NC = logits_NC.sigmoid() if self.about.loss == "bce" else logits_NC.softmax(1)
            return labels_NK, scores_NC.gather(1, labels_NK)
        blocks, of_class = self.centre_blocks(features_ND.device), self.about.sub_centres
        labels_NK, cosines_NK = nearest(F.normalize(features_ND), blocks, top, of_class)
        return labels_NK, cosines_NK.clamp_(-1, 1)

    def centre_blocks(self, device: torch.device | str) -> Iterator[tuple[int, Tensor]]:
        """Normalised centres (T, D), block by block, each after the number of its first row; of a hundred million few
        machines hold all. A block holds whole classes. UserError where there are none."""
        if self.rows is None:
            raise UserError(
                f"{self.source}: holds no classes, but a backbone alone; name the run, or a bundle with its centres"
            )
        count, of_class = self.about.num_centres, self.about.sub_centres
        step = max(1, _BLOCK_CENTRES // of_class) * of_class
        for start in range(0, count, step):
            centres_TD = self.rows(start, min(start + step, count))
            if not (sums_T := centres_TD.sum(1)).isfinite().all():
                broken = (start + int((~sums_T.isfinite()).nonzero()[0])) // of_class
                raise UserError(
                    f"{self.source}: the centre of class {broken} is not finite, as after a run that diverged; name an "
                    "earlier one (--checkpoint step-NNNNNNNN)"
                )
            yield start, F.normalize(centres_TD.to(device))

    def _features(self, images: Any) -> Tensor:
        """(N, D), on the CPU. The first image that cannot be read is raised."""
        rows = []
        for _, found in self.stream(Pictures(images)):
            if isinstance(found, DamagedSampleError):
                raise found
            rows.append(found.cpu())
        # Outside inference mode, so that the caller receives ordinary tensors.
        return torch.cat(rows) if rows else torch.empty(0, self.embedding_dim)

    def _batches(self, dataset: Dataset) -> Iterator[tuple[int, Tensor | DamagedSampleError]]:
        """A batch with a damaged image is cut in halves until that one is alone."""
        start, stop = 0, len(dataset)
        size = stop
        while start < stop:
            try:
                for images_BCHW in self.reader.batches(dataset, start, min(start + size, stop)):
                    yield start, images_BCHW
                    start += len(images_BCHW)
            except DamagedSampleError as error:
                size = min(size, self.reader.batch_size, stop - start) // 2
                if size == 0:
                    yield start, error
                    start, size = start + 1, stop
