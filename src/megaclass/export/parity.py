"""Is an export what the model was? On real images, in numbers.

Shapes: N = images, B = those of a batch, R = columns of a result.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megaclass.checkpoint import manifest
from megaclass.config import load_recipe
from megaclass.data.dataset import Dataset
from megaclass.data.open import split_paths
from megaclass.data.views import Subset
from megaclass.errors import UserError
from megaclass.export.network import Network
from megaclass.inference.embedding import open_images
from megaclass.inference.images import Pictures
from megaclass.inference.model import Model
from megaclass.results.rundir import RunDirectory

IMAGES = 64
# The least cosine between what model and export give. A few images of INT8 may be far off: their mean is judged.
LIMITS = {"fp32": ("cosine_min", 0.9999), "int8": ("cosine_mean", 0.97)}


def evaluation_path(model: Model) -> str:
    """Where the set of the run's evaluation lies; empty where the model is not of a run, or that has none."""
    checkpoint = Path(model.source).resolve()
    run = RunDirectory(checkpoint.parents[1])
    if not (checkpoint / manifest.NAME).is_file() or not run.config.is_file():
        return ""
    return load_recipe(str(run.config), stored=True).evaluate.path


def pick_images(given: str, evaluation: str, model: Model) -> tuple[Dataset, str]:
    """``IMAGES`` images, spread over a set: the one given, that of the run's evaluation, or made ones, of noise; and
    what they are called."""
    if given:
        return spread(open_images([given])[0], IMAGES), given
    try:
        if evaluation:
            return spread(open_images([str(split_paths(evaluation)[0])])[0], IMAGES), evaluation
    except UserError:
        pass  # it lay where the run was trained
    draw, (height, width) = np.random.default_rng(0), (model.preprocessing.height, model.preprocessing.width)
    coarse = draw.integers(0, 256, (IMAGES, 7, 7, 3), dtype=np.uint8)
    return Pictures([image.repeat(height // 7 + 1, 0).repeat(width // 7 + 1, 1) for image in coarse]), "made images"


def spread(dataset: Dataset, count: int) -> Dataset:
    """So many of its images, with the same distance between them."""
    return Subset(dataset, np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(np.int64))


def pixels(model: Model, dataset: Dataset, size: int = 0) -> Iterator[Tensor]:
    """The images as the model takes them, before they are normalised: uint8 (B, H, W, 3)."""
    reader = dataclasses.replace(model.reader, to_input=lambda images: images)
    for images_BHWC in reader.batches(dataset, 0, len(dataset)):
        yield from images_BHWC.split(size or len(images_BHWC))


@torch.inference_mode()
def parity(model: Model, network: Network, dataset: Dataset, run: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Compare the model, with its own preprocessing, with ``run``: of an export on normalised images, or on fp32 0..255
    (B, 3, H, W) where that preprocesses."""
    ours, theirs = [], []
    for images_BHWC in pixels(model, dataset):
        normalised = model.reader.to_input(images_BHWC)
        ours.append(network.result_of(normalised))
        theirs.append(run(images_BHWC.permute(0, 3, 1, 2).float() if network.preprocess else normalised).clone())
    ours_NR, theirs_NR = torch.cat(ours), torch.cat(theirs)
    cosines = torch.nn.functional.cosine_similarity(ours_NR.double(), theirs_NR.double())
    return {
        "images": len(ours_NR),
        "largest_difference": float((ours_NR - theirs_NR).abs().max()),
        "largest_value": float(ours_NR.abs().max()),
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
    }


def judge(found: dict[str, Any], precision: str) -> None:
    """UserError where it is not near enough."""
    name, limit = LIMITS[precision]
    if not found[name] >= limit:
        raise UserError(
            f"the export is not the model: {name} {found[name]:.6f} is under {limit} ({precision}); nothing was written"
        )
