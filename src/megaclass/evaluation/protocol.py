"""Protocols that papers report, beside verification and classification: from embeddings of images to metrics.

A protocol is a module with ``OPTIONS`` (name -> default, help) and ``prepare`` (path, options -> :class:`Prepared`),
and a line in :data:`megaclass.evaluation.PROTOCOLS`. It does not know where embeddings come from.
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


@dataclass(frozen=True)
class Prepared:
    """A protocol on a set of images.

    images: for a model of this input size (height, width). measure: their embeddings fp32 (N, D), in order and the same
    on every rank -> metrics, the same on every rank; every rank calls it. What is not finite counts as wrong in every
    comparison. norms: embeddings have the length that the model gives them; else they are L2-normalised.
    """

    images: Callable[[tuple[int, int]], Dataset]
    measure: Callable[[np.ndarray], dict[str, Any]]
    norms: bool = False


def open_labelled(*paths: str) -> tuple[Dataset, list[np.ndarray]]:
    """Labelled sets, one after the other as one, and the labels of each: names of classes where there are any, else
    numbers. UserError where only some have names."""
    parts = [open_dataset(Path(path)) for path in paths]
    names = [class_names(part) for part in parts]
    if len({known is None for known in names}) > 1:
        raise UserError(
            f"{' and '.join(paths)}: classes are matched by name, and not both have names; give directories"
        )
    labels = [part.labels() for part in parts]
    if names[0] is not None:
        labels = [np.array(known)[numbers] for known, numbers in zip(names, labels, strict=True)]
    return parts[0] if len(parts) == 1 else ConcatDataset(parts, paths), labels
