"""All pairs of labelled sets, as InsightFace's MFR Ongoing has them: of each group of people, and of all together."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from megaclass.data.open import open_dataset, set_titles, split_paths
from megaclass.data.views import ConcatDataset
from megaclass.evaluate.metrics import LOW_FAR_TARGETS, Show, all_pairs_tar
from megaclass.evaluate.protocol import Prepared

IMAGES = "labelled images; several sets with ':' between them are groups"
OPTIONS: dict[str, tuple[Any, str]] = {}


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    dataset = open_dataset(path)
    labels_N = dataset.labels()

    def pairs(embeddings_ND: np.ndarray, part: slice, show: Show) -> dict[str, Any]:
        labels = labels_N[part]
        return all_pairs_tar(embeddings_ND[part], labels, LOW_FAR_TARGETS, max(1, len(labels)), show)

    def measure(embeddings_ND: np.ndarray, show: Show) -> dict[str, Any]:
        """``auc``, ``tar_at_far`` and the like of all images, and ``groups`` {name: the same} of several sets."""
        metrics = pairs(embeddings_ND, slice(None), show)
        if isinstance(dataset, ConcatDataset):
            edges = zip(dataset.starts, dataset.starts[1:], strict=False)
            parts = zip(set_titles(split_paths(path)), edges, strict=True)
            metrics["groups"] = {name: pairs(embeddings_ND, slice(*edge), show) for name, edge in parts}
        return metrics

    return Prepared(len(dataset), lambda: dataset, measure)
