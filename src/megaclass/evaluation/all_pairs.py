"""All pairs of a labelled set, as InsightFace's MFR Ongoing has them: and of each of several sets (A:B:C)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from megaclass.data.open import open_dataset, set_titles, split_paths
from megaclass.data.views import ConcatDataset
from megaclass.evaluation.metrics import LOW_FAR_TARGETS, all_pairs_tar
from megaclass.evaluation.protocol import Prepared

OPTIONS: dict[str, tuple[Any, str]] = {}


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    dataset = open_dataset(path)
    labels_N = dataset.labels()

    def measure(embeddings_ND: np.ndarray) -> dict[str, Any]:
        """See :func:`all_pairs_tar`; ``groups``: {name: the same} of several sets."""
        parts = {"": slice(None)}
        if isinstance(dataset, ConcatDataset):
            edges = map(slice, dataset.starts, dataset.starts[1:])
            parts |= dict(zip(set_titles(split_paths(path)), edges, strict=True))
        limit = max(1, len(labels_N))
        of = {
            name: all_pairs_tar(embeddings_ND[at], labels_N[at], LOW_FAR_TARGETS, limit) for name, at in parts.items()
        }
        return of.pop("") | ({"groups": of} if of else {})

    return Prepared(lambda shape: dataset, measure)
