"""What a trained model says of single images: the classes with their probabilities, or the nearest class centres.

Shapes: B = images of a batch, N = images of a pass over the centres, T = centres of a block, D = embedding columns,
C = classes, K = guesses an image.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaclass.checkpoint import Checkpoint
from megaclass.config import Config
from megaclass.data.augment import resized
from megaclass.data.classnames import read_names
from megaclass.data.dataset import DamagedSampleError, Dataset
from megaclass.data.folder import IMAGE_SUFFIXES, images_under
from megaclass.data.imagelist import ImageList
from megaclass.data.loader import eval_batches
from megaclass.data.views import Subset
from megaclass.errors import UserError
from megaclass.evaluate.embed import evaluating, features
from megaclass.evaluate.evaluators import ImageReader
from megaclass.heads.linear import LinearHead
from megaclass.inference.load import find_checkpoint, trained_backbone, trained_head
from megaclass.parallel.groups import World
from megaclass.results.rundir import RunDirectory
from megaclass.train.arithmetic import use_threads
from megaclass.train.resume import stored_rows

# Of a margin head: so many images share one reading of the centres, of which so many are in memory at once.
_PASS_IMAGES, _BLOCK_CENTRES = 4096, 8192


@dataclass(frozen=True)
class Prediction:
    """The best classes of an image as (label, score), best first; or why there are none."""

    image: str
    guesses: list[tuple[int, float]]
    error: str


# -- images ----------------------------------------------------------------------------------------------


class ImageFiles(ImageList):
    """Image files as a data set, called as they were named."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(".", paths)

    def describe(self, index: int) -> str:
        return self.names[index]


def find_images(paths: Sequence[str]) -> ImageFiles:
    """The files among ``paths`` as they are named, and for each directory all images below it, sorted.

    UserError for a path that is neither, and for a directory without images.
    """
    found: list[str] = []
    for name in paths:
        # Unlike those of Path, these two say no where the system refuses to look.
        if os.path.isfile(name):  # noqa: PTH113
            found.append(name)
            continue
        below = images_under(Path(name)) if os.path.isdir(name) else []  # noqa: PTH112
        if not below:
            raise UserError(
                f"{name!r}: neither a file nor a directory with images ({', '.join(IMAGE_SUFFIXES)}) below it; name "
                "images"
            )
        found += [str(Path(name) / image) for image in below]
    return ImageFiles(found)


def thumbnails(dataset: Dataset, images: ImageReader, numbers: Sequence[int], side: int) -> list[np.ndarray]:
    """These images as the model sees them, made small: uint8 (side, side, 3)."""
    shown = Subset(dataset, np.array(numbers))
    batches = eval_batches(shown, images.transform, images.batch_size, workers=images.workers)
    return [resized(image_SSC, side, side) for batch in batches for image_SSC in batch.images.numpy()]


# -- models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """A backbone and what a head says of its features. Called with images, it gives a prediction of each, in order."""

    backbone: nn.Module
    images: ImageReader
    flip: bool  # see megaclass.evaluate.embed.features
    num_classes: int
    measure: str  # what a score is
    best: Callable[
        [Tensor], tuple[Tensor, Tensor]
    ]  # features (N, D) -> labels, scores (N, K), the best first
    pass_images: int  # which it takes at once

    def __call__(self, dataset: Dataset) -> Iterator[Prediction]:
        for start in range(0, len(dataset), self.pass_images):
            yield from self._pass(dataset, start, min(start + self.pass_images, len(dataset)))

    def _pass(self, dataset: Dataset, start: int, stop: int) -> Iterator[Prediction]:
        errors: dict[int, str] = {}
        sound: list[int] = []
        rows: list[Tensor] = []
        guesses: dict[int, list[tuple[int, float]]] = {}
        model = partial(self.images.features, self.backbone)
        with torch.inference_mode(), evaluating(self.backbone):
            for number, found in self._batches(dataset, start, stop):
                if isinstance(found, DamagedSampleError):
                    errors[number] = str(found)
                else:
                    sound += range(number, number + len(found))
                    rows.append(features(model, found, self.flip))
            if rows:
                labels_NK, scores_NK = (table.tolist() for table in self.best(torch.cat(rows)))
                for number, labels, scores in zip(sound, labels_NK, scores_NK, strict=True):
                    guesses[number] = list(zip(labels, scores, strict=True))
        for number in range(start, stop):
            image, error = dataset.describe(number), errors.get(number, "")
            if any(math.isnan(score) for _, score in guesses.get(number, [])):
                error = f"{image}: the model gives NaN for it; was the run's loss finite?"
            yield Prediction(image, [] if error else guesses[number], error)

    def _batches(
        self, dataset: Dataset, start: int, stop: int
    ) -> Iterator[tuple[int, Tensor | DamagedSampleError]]:
        """The images ``start .. stop-1``, batch by batch, after the number of the first, or of a damaged one.

        A batch with a damaged image is cut in halves until that one is alone.
        """
        size = stop
        while start < stop:
            try:
                for images_BCHW in self.images.batches(dataset, start, min(start + size, stop)):
                    yield start, images_BCHW
                    start += len(images_BCHW)
            except DamagedSampleError as error:
                size = min(size, self.images.batch_size, stop - start) // 2
                if size == 0:
                    yield start, error
                    start, size = start + 1, stop


def load(config: Config, world: World, run_dir: Path, which: str, top: int) -> Predictor:
    """The model of a run's checkpoint: ``best``, ``latest``, or one by its name. It gives ``top`` guesses an image."""
    if world.size > 1:
        raise UserError("predict runs in one process; start it without torchrun")
    if top < 1:
        raise UserError(f"--top: {top} is too few; ask for 1 class or more")
    use_threads(config.run.threads)
    stored = find_checkpoint(run_dir, which)
    backbone, images = trained_backbone(config, stored, world.device)
    if "head" in stored.state:  # a linear one; rows of a margin head are sharded
        head = trained_head(stored, backbone, world.device)
        classes = head.out_features
        best = partial(_most_probable, head, min(top, classes))
        return Predictor(backbone, images, False, classes, "probability", best, images.batch_size)
    entry = stored.sharded.get("head/weight")
    if entry is None or entry.shape[1:] != (backbone.embedding_dim,):
        shape = "missing" if entry is None else entry.shape
        raise UserError(
            f"{stored.path}: checkpoint of another model (centres: {shape}, embeddings {backbone.embedding_dim})"
        )
    classes = entry.shape[0]
    best = partial(_nearest, stored, classes, min(top, classes))
    return Predictor(backbone, images, config.evaluate.flip, classes, "cosine", best, _PASS_IMAGES)


def _most_probable(head: LinearHead, top: int, features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Classes and their probabilities."""
    logits_NC = head.logits(features_ND)
    # Ordered by logits: of probabilities that round to 0 or 1, many are equal.
    labels_NK = logits_NC.topk(top).indices
    return labels_NK, logits_NC.softmax(1).gather(1, labels_NK)


def _nearest(stored: Checkpoint, classes: int, top: int, features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Classes and the cosines of their centres, which are read from the checkpoint block by block."""
    features_ND = F.normalize(features_ND)
    best_NK = features_ND.new_empty((len(features_ND), 0))
    labels_NK = torch.empty_like(best_NK, dtype=torch.int64)
    for start in range(0, classes, _BLOCK_CENTRES):
        stop = min(start + _BLOCK_CENTRES, classes)
        centres_TD = stored_rows(stored, "head/weight", start, stop).fp32()
        if not (sums_T := centres_TD.sum(1)).isfinite().all():
            broken = start + int((~sums_T.isfinite()).nonzero()[0])
            raise UserError(
                f"{stored.path}: the centre of class {broken} is not finite, as after a run that diverged; name an "
                "earlier one (--checkpoint step-NNNNNNNN)"
            )
        centres_TD = F.normalize(centres_TD.to(features_ND.device))
        found = (features_ND @ centres_TD.T).clamp_(-1, 1).topk(min(top, stop - start))
        best_NK = torch.cat([best_NK, found.values], 1)
        labels_NK = torch.cat([labels_NK, found.indices + start], 1)
        best_NK, kept_NK = best_NK.topk(min(top, stop))
        labels_NK = labels_NK.gather(1, kept_NK)
    return labels_NK, best_NK


# -- names -----------------------------------------------------------------------------------------------


class Names:
    """What to call the classes of a run: by its ``classes.txt``, and by a file of readable names."""

    def __init__(self, directory: RunDirectory, num_classes: int, readable: str = "") -> None:
        self.classes = directory.read_classes()
        if self.classes and len(self.classes) != num_classes:
            raise UserError(
                f"{directory.classes}: {len(self.classes):,} names for {num_classes:,} classes; "
                "bring back the file that the run wrote, or move it away"
            )
        self.readable = read_names(readable, self.classes, num_classes) if readable else None

    def rows(self, prediction: Prediction, measure: str) -> list[dict[str, Any]]:
        """The guesses for a file; what is not known is None."""
        return [
            {
                "rank": rank,
                "label": label,
                "class": self.classes[label] if self.classes else None,
                "name": self.readable[label] if self.readable else None,
                measure: float(f"{score:.6g}"),
            }
            for rank, (label, score) in enumerate(prediction.guesses, start=1)
        ]
