"""What a trained model says of single images: the classes with their probabilities, or the nearest class centres.

Shapes: B = images of a batch, N = images of a pass over the centres, T = centres of a block, D = embedding columns,
C = classes, K = guesses an image.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaclass.checkpoint import Checkpoint
from megaclass.config import Config, check
from megaclass.data.augment import resized
from megaclass.data.classnames import read_names
from megaclass.data.dataset import DamagedSampleError, Dataset
from megaclass.data.folder import IMAGE_SUFFIXES, images_under
from megaclass.data.imagelist import ImageList
from megaclass.data.loader import eval_batches
from megaclass.data.subset import Subset
from megaclass.errors import UserError
from megaclass.evaluate.embed import features
from megaclass.evaluate.evaluators import ImageReader
from megaclass.heads.linear import LinearHead
from megaclass.inference.load import find_checkpoint, trained_backbone, trained_head
from megaclass.parallel.groups import World
from megaclass.results.rundir import RunDirectory
from megaclass.train.arithmetic import use_threads
from megaclass.train.job import image_reader
from megaclass.train.model import input_function
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


class Predictor:
    """What both kinds of heads share. Called with images, it gives a prediction of each, in order."""

    measure: str  # what a score is

    def __init__(
        self, backbone: nn.Module, images: ImageReader, num_classes: int, top: int, pass_images: int
    ) -> None:
        self.backbone, self.images = backbone.eval(), images
        self.num_classes, self.top = num_classes, min(top, num_classes)
        self.pass_images = pass_images

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the head compares, fp32 (B, D)."""
        raise NotImplementedError

    def best(self, features_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and scores, (N, K) each, the best first."""
        raise NotImplementedError

    def __call__(self, dataset: Dataset) -> Iterator[Prediction]:
        for start in range(0, len(dataset), self.pass_images):
            yield from self._pass(dataset, start, min(start + self.pass_images, len(dataset)))

    def _pass(self, dataset: Dataset, start: int, stop: int) -> Iterator[Prediction]:
        errors: dict[int, str] = {}
        sound: list[int] = []
        rows: list[Tensor] = []
        guesses: dict[int, list[tuple[int, float]]] = {}
        with torch.inference_mode():
            for number, found in self._batches(dataset, start, stop):
                if isinstance(found, DamagedSampleError):
                    errors[number] = str(found)
                else:
                    sound += range(number, number + len(found))
                    rows.append(self.features(found))
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
                for images_BCHW in self.images.ranges(dataset)(start, min(start + size, stop)):
                    yield start, images_BCHW
                    start += len(images_BCHW)
            except DamagedSampleError as error:
                size = min(size, self.images.batch_size, stop - start) // 2
                if size == 0:
                    yield start, error
                    start, size = start + 1, stop


class Classes(Predictor):
    """A linear head: the most probable classes."""

    measure = "probability"

    def __init__(self, backbone: nn.Module, head: LinearHead, images: ImageReader, top: int) -> None:
        super().__init__(backbone, images, head.out_features, top, images.batch_size)
        self.head = head

    def features(self, images_BCHW: Tensor) -> Tensor:
        with self.images.precision():
            features_BD: Tensor = self.backbone(images_BCHW)
        return features_BD.float()  # the head in fp32, as in training

    def best(self, features_ND: Tensor) -> tuple[Tensor, Tensor]:
        logits_NC = self.head.logits(features_ND)
        # Ordered by logits: of probabilities that round to 0 or 1, many are equal.
        labels_NK = logits_NC.topk(self.top).indices
        return labels_NK, logits_NC.softmax(1).gather(1, labels_NK)


class Identities(Predictor):
    """A margin head: the classes whose centres are nearest, by cosine.

    The centres are read from the checkpoint block by block, once for every ``pass_images`` images.
    """

    measure = "cosine"

    def __init__(
        self, backbone: nn.Module, stored: Checkpoint, images: ImageReader, flip: bool, top: int
    ) -> None:
        entry = stored.sharded.get("head/weight")
        if entry is None or entry.shape[1:] != (backbone.embedding_dim,):
            shape = "missing" if entry is None else entry.shape
            raise UserError(
                f"{stored.path}: checkpoint of another model (centres: {shape}, embeddings {backbone.embedding_dim})"
            )
        super().__init__(backbone, images, entry.shape[0], top, _PASS_IMAGES)
        self.stored, self.flip = stored, flip

    def features(self, images_BCHW: Tensor) -> Tensor:
        with self.images.precision():
            return F.normalize(features(self.backbone, images_BCHW, self.flip))

    def best(self, features_ND: Tensor) -> tuple[Tensor, Tensor]:
        best_NK = features_ND.new_empty((len(features_ND), 0))
        labels_NK = torch.empty_like(best_NK, dtype=torch.int64)
        for start in range(0, self.num_classes, _BLOCK_CENTRES):
            stop = min(start + _BLOCK_CENTRES, self.num_classes)
            centres_TD = stored_rows(self.stored, "head/weight", start, stop).fp32()
            centres_TD = F.normalize(centres_TD.to(features_ND.device))
            found = (features_ND @ centres_TD.T).clamp_(-1, 1).topk(min(self.top, stop - start))
            best_NK = torch.cat([best_NK, found.values], 1)
            labels_NK = torch.cat([labels_NK, found.indices + start], 1)
            best_NK, kept_NK = best_NK.topk(min(self.top, stop))
            labels_NK = labels_NK.gather(1, kept_NK)
        return labels_NK, best_NK


def load(config: Config, world: World, run_dir: Path, which: str, top: int) -> Predictor:
    """The model of a run's checkpoint: ``best``, ``latest``, or one by its name. It gives ``top`` guesses an image."""
    if world.size > 1:
        raise UserError("predict runs in one process; start it without torchrun")
    if top < 1:
        raise UserError(f"--top: {top} is too few; ask for 1 class or more")
    use_threads(config.run.threads)
    check(config)
    stored = find_checkpoint(run_dir, which)
    backbone, arithmetic = trained_backbone(config, stored, world.device)
    images = image_reader(config, arithmetic, input_function(config, arithmetic))
    if "head" in stored.state:  # a linear one; rows of a margin head are sharded
        return Classes(backbone, trained_head(stored, backbone, world.device), images, top)
    return Identities(backbone, stored, images, config.evaluate.flip, top)


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
