"""1:N identification: whose image is it, among those of a gallery."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from megaclass.errors import UserError
from megaclass.evaluation.protocol import Prepared, open_labelled
from megaclass.evaluation.retrieval import retrieval_metrics

OPTIONS = {"gallery": ("", "labelled images among which IMAGES are searched; classes are matched by name")}


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    if not options["gallery"]:
        raise UserError("identification needs --gallery: labelled images among which IMAGES are searched")
    both, (labels_P, labels_G) = open_labelled(path, options["gallery"])

    def measure(embeddings_ND: np.ndarray) -> dict[str, Any]:
        probes_PD, gallery_GD = np.split(embeddings_ND, [len(labels_P)])
        return retrieval_metrics(probes_PD, labels_P, (gallery_GD, labels_G))

    return Prepared(lambda shape: both, measure)
