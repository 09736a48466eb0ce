"""Embeddings for a protocol of :mod:`megaclass.evaluate.protocol`: a model's, or those of a file.

Shapes: N = images, D = embedding columns.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from megaclass.errors import UserError
from megaclass.evaluate.embed import embed, evaluating
from megaclass.evaluate.metrics import Show
from megaclass.evaluate.protocol import Prepared
from megaclass.inference.model import Model
from megaclass.inference.vectors import read_embeddings
from megaclass.parallel.groups import world_size


def model_embeddings(model: Model, prepared: Prepared) -> np.ndarray:
    """fp32 (N, D) as the protocol wants them, on every rank; each embeds its share. Every rank calls it."""
    dataset = prepared.images(model.reader.transform.shape)
    with evaluating(model.backbone):
        features, batches = (
            partial(model.reader.features, model.backbone),
            partial(model.reader.batches, dataset),
        )
        return embed(features, batches, len(dataset), model.about.flip, normalised=not prepared.norms).numpy()


def stored_embeddings(path: Path, prepared: Prepared) -> np.ndarray:
    """The same from a file of embeddings, see :func:`read_embeddings`. Of these only ``.npy`` keeps the rows' norms."""
    rows_ND = read_embeddings(path).embeddings
    if prepared.norms and path.suffix.lower() == ".npy":
        rows_ND = np.load(path, mmap_mode="r").astype(np.float32)
    if False:
        raise UserError(
            f"--embeddings: {path} holds {len(rows_ND):,} rows, the list {prepared.count:,} images; give a row for each "
            "image, in order"
        )
    return rows_ND
