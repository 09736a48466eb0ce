"""What a trained model says of single images: the classes with their probabilities, or the nearest class centres.

Shapes: B = images of a batch, N = images of a pass over the centres, T = centres of a block, D = embedding columns,
C = classes, K = guesses an image.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
from megaclass.data.dataset import DamagedSampleError, Dataset, Sample
from megaclass.data.folder import IMAGE_SUFFIXES, images_under
from megaclass.data.imagelist import MAX_BYTES
from megaclass.data.loader import eval_batches
from megaclass.data.views import Subset
from megaclass.errors import UserError
from megaclass.evaluate.evaluators import ImageReader
from megaclass.heads.linear import LinearHead
from megaclass.inference.load import find_checkpoint, has_linear_head, trained_backbone, trained_head
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
    guesses: list[tuple[int, float]] = field(default_factory=list)
    error: str = ""


# -- images ----------------------------------------------------------------------------------------------


class ImageFiles:
    """Image files as a data set. There are no classes to learn: every label is 0."""

    num_classes = 1

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Sample:
        path = Path(self.paths[index])
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise DamagedSampleError(
                    f"{path}: {size:,} bytes, the limit is {MAX_BYTES:,}; is it an image?"
                )
            return Sample(path.read_bytes(), 0)
        except OSError as error:
            raise DamagedSampleError(f"{path}: cannot be read: {error.strerror}; mend that") from None

    def labels(self) -> np.ndarray:
        return np.zeros(len(self), dtype=np.int64)

    def describe(self, index: int) -> str:
        return self.paths[index]


def find_images(paths: Sequence[str]) -> ImageFiles:
    """The files among ``paths`` as they are named, and for each directory all images below it, sorted.

    UserError for a path that is neither, and for a directory without images.
    """
    found: list[str] = []
    for name in paths:
        path = Path(name)
        try:
            if not name:
                raise UserError("an empty path stands among the images; name files or directories")
            if path.is_dir():
                below = images_under(path, ".")
                if not below:
                    raise UserError(
                        f"{name}: a directory without images; {', '.join(IMAGE_SUFFIXES)} are read"
                    )
                found += [str(path / image) for image in below]
            elif path.is_file():
                found.append(name)
            elif path.exists():
                raise UserError(f"{name}: neither a file nor a directory; name images")
            else:
                raise UserError(f"{name}: no such file or directory; name images, or directories of them")
        except OSError as error:
            raise UserError(f"{name}: cannot be looked at: {error.strerror}; name another image") from None
    return ImageFiles(found)


@dataclass(frozen=True)
class _Piece:
    """Consecutive images: the sound ones, as the model takes them, and what is wrong with the others."""

    sound: Sequence[int]
    images_BCHW: Tensor | None
    damages: Mapping[int, str]


def _pieces(dataset: Dataset, images: ImageReader, start: int, stop: int) -> Iterator[_Piece]:
    """The images ``start .. stop-1``, batch by batch. One that is damaged costs its batch another look at each."""
    while start < stop:
        try:
            for images_BCHW in images.ranges(dataset)(start, stop):
                numbers = range(start, start + len(images_BCHW))
                start = numbers.stop
                yield _Piece(numbers, images_BCHW, {})
        except DamagedSampleError:
            end = min(start + images.batch_size, stop)
            yield _sorted_out(dataset, images, range(start, end))
            start = end


def _sorted_out(dataset: Dataset, images: ImageReader, numbers: range) -> _Piece:
    def damage(number: int) -> str:
        try:
            next(eval_batches(dataset, images.transform, 1, number, number + 1))
        except DamagedSampleError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(images.workers) as pool:
        damages = {number: why for number, why in zip(numbers, pool.map(damage, numbers), strict=True) if why}
    sound = [number for number in numbers if number not in damages]
    if not sound:
        return _Piece(sound, None, damages)
    rest = Subset(dataset, np.array(sound))
    return _Piece(sound, next(images.ranges(rest)(0, len(sound))), damages)


def thumbnails(dataset: Dataset, images: ImageReader, numbers: Sequence[int], side: int) -> list[np.ndarray]:
    """These images as the model sees them, made small: uint8 (side, side, 3)."""
    shown = Subset(dataset, np.array(numbers))
    batches = eval_batches(shown, images.transform, images.batch_size, workers=images.workers)
    return [resized(image_SSC, side, side) for batch in batches for image_SSC in batch.images.numpy()]


# -- models ----------------------------------------------------------------------------------------------


class Classes:
    """A linear head: the most probable classes."""

    measure = "probability"

    def __init__(self, backbone: nn.Module, head: LinearHead, images: ImageReader, top: int) -> None:
        self.backbone, self.head, self.images = backbone.eval(), head, images
        self.num_classes = head.out_features
        self.top = min(top, self.num_classes)
        self.pass_images = images.batch_size

    def __call__(self, dataset: Dataset) -> Iterator[Prediction]:
        """One prediction for each image, in order."""
        return _predictions(self, dataset)

    def features(self, images_BCHW: Tensor) -> Tensor:
        with self.images.precision():
            features_BD: Tensor = self.backbone(images_BCHW)
        return features_BD.float()  # the head in fp32, as in training

    def best(self, features_ND: Tensor) -> tuple[Tensor, Tensor]:
        logits_NC = self.head.logits(features_ND)
        # Ordered by logits: of probabilities that round to 0 or 1, many are equal.
        labels_NK = logits_NC.topk(self.top).indices
        return labels_NK, logits_NC.softmax(1).gather(1, labels_NK)


class Identities:
    """A margin head: the classes whose centres are nearest, by cosine.

    The centres are read from the checkpoint block by block, once for every ``pass_images`` images.
    """

    measure = "cosine"
    pass_images = _PASS_IMAGES

    def __init__(
        self, backbone: nn.Module, stored: Checkpoint, images: ImageReader, flip: bool, top: int
    ) -> None:
        self.backbone, self.stored, self.images, self.flip = backbone.eval(), stored, images, flip
        entry = stored.sharded.get("head/weight")
        width = backbone.embedding_dim
        if entry is None or tuple(entry.shape[1:]) != (width,):
            shape = "missing" if entry is None else tuple(entry.shape)
            raise UserError(
                f"{stored.path}: checkpoint of another model (centres: {shape}, embeddings {width})"
            )
        self.num_classes: int = entry.shape[0]
        self.top = min(top, self.num_classes)

    def __call__(self, dataset: Dataset) -> Iterator[Prediction]:
        """One prediction for each image, in order."""
        return _predictions(self, dataset)

    def features(self, images_BCHW: Tensor) -> Tensor:
        with self.images.precision():
            rows_BD = self.backbone(images_BCHW).float()
            if self.flip:
                rows_BD = rows_BD + self.backbone(images_BCHW.flip(-1)).float()
        return F.normalize(rows_BD)

    def best(self, embeddings_ND: Tensor) -> tuple[Tensor, Tensor]:
        best_NK = embeddings_ND.new_empty((len(embeddings_ND), 0))
        labels_NK = torch.empty_like(best_NK, dtype=torch.int64)
        for start in range(0, self.num_classes, _BLOCK_CENTRES):
            stop = min(start + _BLOCK_CENTRES, self.num_classes)
            centres_TD = stored_rows(self.stored, "head/weight", start, stop).fp32()
            centres_TD = F.normalize(centres_TD.to(embeddings_ND.device))
            cosines_NT = (embeddings_ND @ centres_TD.T).clamp_(-1, 1)
            # A centre that is not finite is near nothing.
            cosines_NT[:, ~centres_TD.isfinite().all(1)] = -torch.inf
            found = cosines_NT.topk(min(self.top, stop - start))
            best_NK = torch.cat([best_NK, found.values], 1)
            labels_NK = torch.cat([labels_NK, found.indices + start], 1)
            best_NK, kept_NK = best_NK.topk(min(self.top, stop))
            labels_NK = labels_NK.gather(1, kept_NK)
        return labels_NK, best_NK


def _predictions(model: Classes | Identities, dataset: Dataset) -> Iterator[Prediction]:
    for start in range(0, len(dataset), model.pass_images):
        found: dict[int, tuple[list[int], list[float]]] = {}
        damages: dict[int, str] = {}
        sound: list[int] = []
        rows: list[Tensor] = []
        stop = min(start + model.pass_images, len(dataset))
        with torch.inference_mode():
            for piece in _pieces(dataset, model.images, start, stop):
                sound += piece.sound
                damages |= piece.damages
                if piece.images_BCHW is not None:
                    rows.append(model.features(piece.images_BCHW))
            if rows:
                pairs = zip(*(tensor.tolist() for tensor in model.best(torch.cat(rows))), strict=True)
                found = dict(zip(sound, pairs, strict=True))
        for number in range(start, stop):
            guesses = list(zip(*found[number], strict=True)) if number in found else []
            yield _prediction(dataset.describe(number), guesses, damages.get(number, ""))


def _prediction(image: str, guesses: list[tuple[int, float]], damage: str) -> Prediction:
    if any(math.isnan(score) for _, score in guesses):
        damage = f"{image}: the model gives NaN for it; was the run's loss finite?"
    kept = [] if damage else [guess for guess in guesses if guess[1] > -math.inf]
    return Prediction(image, kept, damage)


def load(config: Config, world: World, run_dir: Path, which: str, top: int) -> Classes | Identities:
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
    if has_linear_head(stored):
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
