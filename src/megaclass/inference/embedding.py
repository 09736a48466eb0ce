"""Images of any source, embedded block by block, and which model it was.

Shapes: B = images of a block, D = embedding columns.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from megaclass.data.dataset import DamagedSampleError, Dataset, class_names
from megaclass.data.folder import IMAGE_SUFFIXES, FolderDataset, images_under
from megaclass.data.open import kind_of, open_dataset
from megaclass.data.pack.labels import number_names, read_table
from megaclass.data.verification_bin import VerificationBin
from megaclass.errors import UserError
from megaclass.inference.images import ImageFiles, find_images
from megaclass.inference.model import Model
from megaclass.inference.vectors import Embeddings


class TableImages(ImageFiles):
    """The images of a table: a path, from the directory of the table on, and an identity a line."""

    def __init__(self, path: Path) -> None:
        rows = read_table(path, "table", lambda name: (path.parent / name).is_file())
        if not rows:
            raise UserError(f"{path}: no table of images: its lines are not 'path,identity', or no such file is there")
        super().__init__([str(path.parent / name) for _, name, _ in rows])
        self._labels, self.classes = number_names([label for _, _, label in rows])

    def labels(self) -> np.ndarray:
        return self._labels


def open_images(paths: Sequence[str]) -> tuple[Dataset, list[str] | None]:
    """Images, and the names of their classes where they are labelled: of a record set, WebDataset tars, a table (.csv)
    or a directory of class directories, if it is the only path. A ``.bin``, files and directories have none. UserError.
    """
    path = Path(paths[0])
    if path.suffix == ".bin" and len(paths) == 1:
        return VerificationBin(path), None
    found: Dataset
    if len(paths) > 1 or path.suffix.lower() in IMAGE_SUFFIXES:
        return find_images(paths), None
    if path.suffix == ".csv":
        found = TableImages(path)
    elif path.is_dir() and kind_of(path) == "image folder":
        if not all("/" in name for name in images_under(path)):
            return find_images(paths), None
        found = FolderDataset(path)
    else:
        found = open_dataset(paths[0])
    return found, class_names(found) or [str(label) for label in range(found.num_classes)]


def embedded(
    model: Model, dataset: Dataset, labelled: bool, damaged: Callable[[str, str], None]
) -> Iterator[Embeddings]:
    """All images, block by block. ``damaged`` is called with the name of each image that cannot be read, or of which
    the model makes nothing, and what is wrong with it."""
    labels_N = dataset.labels() if labelled else None
    for start, found in model.stream(dataset):
        if isinstance(found, DamagedSampleError):
            damaged(dataset.describe(start), str(found))
            continue
        rows_BD = F.normalize(found).cpu().numpy()
        sound_B = np.isfinite(rows_BD).all(1) & rows_BD.any(1)
        names = [dataset.describe(start + i) for i in range(len(rows_BD))]
        for i in np.flatnonzero(~sound_B):
            damaged(names[i], f"{names[i]}: the model gives NaN or zero for it; was the run's loss finite?")
        places = np.flatnonzero(sound_B)
        labels = None if labels_N is None else labels_N[start + places]
        yield Embeddings(rows_BD[places], [names[i] for i in places], labels)


def metadata(model: Model) -> dict[str, str]:
    """Which model it is, without the directories above it. UserError for a model without embeddings.

    ``fingerprint``: of its weights and of what becomes of an image: two models with one give the same embeddings; an
    export has that of its model.
    """
    model.require_embeddings()
    place = Path(model.source)
    name = "/".join(place.parts[-3:]) if place.parent.name == "checkpoints" else place.name
    prepared = json.dumps([asdict(model.preprocessing), model.about.flip])
    digest = hashlib.blake2b(prepared.encode(), digest_size=16)
    if model.about.fingerprint:
        return {"model": name, "fingerprint": model.about.fingerprint, "preprocessing": prepared}
    weights = {key: value for key, value in model.backbone.state_dict().items() if value.is_floating_point()}
    if not weights:  # an exported one
        digest.update(Path(model.source).read_bytes())
    for key, value in sorted(weights.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {"model": name, "fingerprint": digest.hexdigest(), "preprocessing": prepared}
