"""Images of any source, embedded block by block, and which model it was.

Shapes: B = images of a block, D = embedding columns.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from megaclass.data.dataset import DamagedSampleError, Dataset
from megaclass.data.folder import IMAGE_SUFFIXES, FolderDataset, images_under
from megaclass.data.open import kind_of, open_dataset
from megaclass.data.pack.labels import number_names, read_table
from megaclass.data.verification_bin import VerificationBin
from megaclass.errors import UserError
from megaclass.inference.images import ImageFiles, find_images
from megaclass.inference.model import Model
from megaclass.inference.vectors import Block


class TableImages(ImageFiles):
    """The images of a table: a path, from the directory of the table on, and an identity a line."""

    def __init__(self, path: Path) -> None:
        rows = read_table(path, "table", lambda name: (path.parent / name).is_file())
        if not rows:
            raise UserError(
                f"{path}: no table of images: its lines are not 'path,identity', or no such file is there"
            )
        super().__init__([str(path.parent / name) for _, name, _ in rows])
        self._labels, self.classes = number_names([label for _, _, label in rows])

    def labels(self) -> np.ndarray:
        return self._labels


def open_images(paths: Sequence[str]) -> Dataset:
    """A record set, WebDataset tars, a ``.bin``, a table (``.csv``, ``.tsv``, ``.txt``) or a directory of class
    directories, if it is the only path; else image files and directories, which have no labels. UserError."""
    path = Path(paths[0])
    if len(paths) > 1 or path.suffix.lower() in IMAGE_SUFFIXES:
        return find_images(paths)
    if path.suffix in (".csv", ".tsv", ".txt"):
        return TableImages(path)
    if path.suffix == ".bin":
        return VerificationBin(path)
    if path.is_dir() and kind_of(path) == "image folder":
        within = images_under(path)
        return FolderDataset(path) if within and all("/" in name for name in within) else find_images(paths)
    return open_dataset(paths[0])


def is_labelled(dataset: Dataset) -> bool:
    return isinstance(dataset, TableImages) or not isinstance(dataset, ImageFiles | VerificationBin)


def short_name(paths: Sequence[str], dataset: Dataset, index: int) -> str:
    """The path of an image within the directory that was named; a record's number."""
    if not isinstance(dataset, ImageFiles | FolderDataset):
        return str(index)
    path = dataset.describe(index)
    return os.path.relpath(path, paths[0]) if len(paths) == 1 and Path(paths[0]).is_dir() else path


def embedded(
    model: Model, dataset: Dataset, name: Callable[[int], str], damaged: Callable[[str, str], None]
) -> Iterator[Block]:
    """Normalised embeddings of all images, with labels where the set has them; ``damaged`` is called with
    the name of each image that cannot be read, or of which the model makes nothing, and what is wrong with it."""
    labels_N = dataset.labels() if is_labelled(dataset) else None
    for start, found in model.stream(dataset):
        if isinstance(found, DamagedSampleError):
            damaged(name(start), str(found))
            continue
        rows_BD = F.normalize(found).cpu().numpy()
        sound_B = np.isfinite(rows_BD).all(1) & rows_BD.any(1)
        for index in (start + np.flatnonzero(~sound_B)).tolist():
            image = dataset.describe(index)
            damaged(name(index), f"{image}: the model gives NaN or zero for it; was the run's loss finite?")
        numbers = start + np.flatnonzero(sound_B)
        labels = None if labels_N is None else labels_N[numbers]
        yield Block([name(index) for index in numbers.tolist()], rows_BD[sound_B], labels)


def metadata(model: Model) -> dict[str, str]:
    """Which model it is. ``fingerprint``: of its weights and of what becomes of an image: two models with one give the
    same embeddings."""
    prepared = json.dumps([model.preprocessing.to_json(), model.about.flip])
    digest = hashlib.blake2b(prepared.encode(), digest_size=16)
    weights = {
        name: value for name, value in model.backbone.state_dict().items() if value.is_floating_point()
    }
    if not weights:  # an exported one
        digest.update(Path(model.source).read_bytes())
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {"model": model.source, "fingerprint": digest.hexdigest(), "preprocessing": prepared}
