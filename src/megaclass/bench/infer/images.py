"""Batches of images in host memory, without end: noise, or a set in its order.

Shapes: B = images of a batch, S = image size, C = 3 channels.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megaclass.bench.infer.cases import InferCase
from megaclass.bench.recipes import SYNTHETIC
from megaclass.config import Config
from megaclass.data.augment import EvalTransform
from megaclass.data.dataset import Dataset
from megaclass.data.loader import Loader
from megaclass.data.open import open_dataset
from megaclass.data.synthetic import SyntheticLoader


def open_images(data: str) -> Dataset:
    """The set under ``data``, or under its ``val`` where it has one. UserError: there is no set."""
    return open_dataset(Path(data) / "val" if (Path(data) / "val").is_dir() else Path(data))


def host_batches(case: InferCase, config: Config, device: torch.device) -> Iterator[Tensor]:
    """uint8 (B, S, S, C), pinned where they go to a GPU; each is good until the next one is asked for.

    A set is read as an evaluation reads it, and begins anew at its end, in the middle of a batch if need be: all
    batches are full.
    """
    pin_memory = device.type == "cuda"
    if case.data == SYNTHETIC:
        noise = SyntheticLoader(1, case.image_size, case.batch_size, seed=case.seed)
        made = [batch.images for batch in noise.steps(0, 2)]
        yield from itertools.cycle([images.pin_memory() for images in made] if pin_memory else made)
        return
    dataset = open_images(case.data)

    def indices_of_step(step: int) -> tuple[np.ndarray, np.ndarray]:
        numbers_B = np.arange(step * case.batch_size, (step + 1) * case.batch_size)
        return numbers_B % len(dataset), numbers_B

    loader = Loader(
        dataset,
        EvalTransform(case.image_size, config.evaluate.resize),
        indices_of_step,
        workers=case.threads,
        pin_memory=pin_memory,
    )
    steps = case.iterations * (case.warmup + case.epochs)
    yield from (batch.images for batch in loader.steps(0, steps))
