"""Embeddings for a protocol of :mod:`megaclass.evaluate.protocol`: a model's, or those of a file.

Shapes: N = images, D = embedding columns.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from megaclass.errors import UserError, first_line
from megaclass.evaluate.embed import embed, evaluating
from megaclass.evaluate.metrics import Show
from megaclass.evaluate.protocol import Prepared
from megaclass.inference.model import Model
from megaclass.parallel.groups import world_size


def model_embeddings(model: Model, prepared: Prepared, show: Show) -> np.ndarray:
    """fp32 (N, D) as the protocol wants them, on every rank; each embeds its share. Every rank calls it."""
    dataset = prepared.images()

    def batches(start: int, stop: int) -> Iterator[Tensor]:
        done = 0
        for images_BCHW in model.reader.batches(dataset, start, stop):
            yield images_BCHW
            done += len(images_BCHW)
            show(min(done * world_size(), prepared.count), prepared.count)

    flip = model.about.flip if prepared.flip is None else prepared.flip
    with evaluating(model.backbone):
        features = partial(model.reader.features, model.backbone)
        return embed(features, batches, prepared.count, flip, normalised=not prepared.norms).numpy()


def stored_embeddings(path: Path, prepared: Prepared) -> np.ndarray:
    """The same from a matrix of N rows: a ``.npy`` file, or the array ``embeddings`` of an ``.npz``."""
    try:
        found: Any = np.load(path, allow_pickle=False)
        rows_ND = found["embeddings"] if path.suffix == ".npz" else found
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"--embeddings: {path} holds no embeddings ({first_line(error)})") from None
    if rows_ND.ndim != 2 or rows_ND.dtype.kind != "f" or len(rows_ND) != prepared.count:
        raise UserError(
            f"--embeddings: {path} holds {rows_ND.dtype} {rows_ND.shape}; give floats ({prepared.count}, D), a row for "
            "each image in order"
        )
    rows_ND = rows_ND.astype(np.float32)
    if prepared.norms:
        return rows_ND
    with np.errstate(invalid="ignore", divide="ignore"):
        return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
