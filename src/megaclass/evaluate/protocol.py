"""Protocols that papers report, beside verification and classification: from embeddings of images to metrics.

A protocol is a module with ``IMAGES`` (what its path is), ``OPTIONS`` (name -> default, help) and ``prepare`` (path,
options -> :class:`Prepared`), and a line in :data:`megaclass.evaluate.PROTOCOLS`. It does not know where
embeddings come from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaclass.data.dataset import Dataset, class_names
from megaclass.data.open import open_dataset
from megaclass.data.views import ConcatDataset
from megaclass.errors import UserError
from megaclass.evaluate.metrics import Show


@dataclass(frozen=True)
class Prepared:
    """A protocol on a set of N images.

    measure: embeddings fp32 (N, D), in the order of the images, the same on every rank -> metrics, the same
    on every rank. Every rank calls it. A row that is not finite counts as wrong in every comparison. norms: embeddings
    have the length that the model gives them; others are L2-normalised. images: opened when asked for.
    """

    count: int
    images: Callable[[], Dataset]
    measure: Callable[[np.ndarray, Show], dict[str, Any]]
    norms: bool = False
    flip: bool | None = None  # whether the mirrored image's embedding is added; None: as the model has it


def two_sets(first: str, second: str, option: str) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """Two labelled sets, one after the other, and the labels of each: the same number for the same class.

    Classes are matched by name; of two sets without names, by number. UserError, naming the ``option`` of the second,
    where only one has names.
    """
    parts = [open_dataset(Path(path)) for path in (first, second)]
    names = [class_names(part) for part in parts]
    labels = [part.labels() for part in parts]
    if names[0] and names[1]:
        number = {name: label for label, name in enumerate(names[0])}
        shared = [number.setdefault(name, len(number)) for name in names[1]]
        labels[1] = np.array(shared, np.int64)[labels[1]]
    elif names[0] or names[1]:
        raise UserError(
            f"{option}: one of {first} and {second} has no names of classes; give both as directories"
        )
    return ConcatDataset(parts, [first, second]), labels[0], labels[1]
