"""What a trained model says of images: the classes with their probabilities, or the nearest class centres."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megaclass.data.dataset import DamagedSampleError, Dataset
from megaclass.inference.model import Model

# Of a margin head: so many images share one reading of the centres.
_PASS_IMAGES = 4096


@dataclass(frozen=True)
class Prediction:
    """The best classes of an image as (label, score), best first; or why there are none."""

    image: str
    guesses: list[tuple[int, float]]
    error: str


def predictions(model: Model, dataset: Dataset, top: int) -> Iterator[Prediction]:
    """One of each image, in order."""
    held: list[tuple[int, Tensor | DamagedSampleError]] = []
    at_once = _PASS_IMAGES if model.head is None else model.reader.batch_size
    for found in model.stream(dataset):
        held.append(found)
        if sum(len(rows) for _, rows in held if isinstance(rows, Tensor)) >= at_once:
            yield from _pass(model, dataset, held, top)
            held = []
    yield from _pass(model, dataset, held, top)


def _pass(
    model: Model, dataset: Dataset, held: list[tuple[int, Tensor | DamagedSampleError]], top: int
) -> Iterator[Prediction]:
    rows = [found for _, found in held if isinstance(found, Tensor)]
    guesses: Iterator[list[tuple[int, float]]] = iter(())
    if rows:
        with torch.inference_mode():
            tables = (table.tolist() for table in model.best(torch.cat(rows), top))
            guesses = iter([list(zip(*row, strict=True)) for row in zip(*tables, strict=True)])
    for start, found in held:
        if isinstance(found, DamagedSampleError):
            yield Prediction(dataset.describe(start), [], str(found))
            continue
        for number in range(start, start + len(found)):
            image, mine = dataset.describe(number), next(guesses)
            if any(math.isnan(score) for _, score in mine):
                yield Prediction(image, [], f"{image}: the model gives NaN for it; was the run's loss finite?")
            else:
                yield Prediction(image, mine, "")


def guess_rows(model: Model, names: list[str] | None, prediction: Prediction) -> list[dict[str, Any]]:
    """The guesses for a file, with the readable ``names`` of classes; what is not known is None."""
    return [
        {
            "rank": rank,
            "label": label,
            "class": model.classes[label] if model.classes else None,
            "name": names[label] if names else None,
            model.measure: float(f"{score:.6g}"),
        }
        for rank, (label, score) in enumerate(prediction.guesses, start=1)
    ]
