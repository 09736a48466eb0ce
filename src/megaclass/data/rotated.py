"""Quarter turns of characters as further classes, the usual augmentation of few-shot character sets."""

import numpy as np

from megaclass.data.dataset import Dataset, Sample
from megaclass.errors import UserError


class RotatedClasses:
    """A dataset ``turns`` times: copy k holds every image turned by k quarters, as classes of its own.

    Sample ``i`` of copy ``k`` is number ``k * len(dataset) + i`` and has the label
    ``label + k * dataset.num_classes``. Images are still encoded here, so the turn is left to whoever
    decodes them: ``np.rot90(image, dataset.turn(index))``, which is exact.
    """

    def __init__(self, dataset: Dataset, turns: int) -> None:
        if turns not in (1, 2, 4):
            raise UserError(f"rotation_classes: {turns} is not one of 1 (off), 2 (0 and 90 degrees) and 4")
        self.num_classes = dataset.num_classes * turns
        self._dataset = dataset
        self._turns = turns

    def __len__(self) -> int:
        return len(self._dataset) * self._turns

    def turn(self, index: int) -> int:
        """How many quarters (counter-clockwise) sample ``index`` is turned."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return index // len(self._dataset)

    def read(self, index: int) -> Sample:
        turn = self.turn(index)
        sample = self._dataset.read(index % len(self._dataset))
        return Sample(sample.encoded, sample.label + turn * self._dataset.num_classes)

    def labels(self) -> np.ndarray:
        labels = self._dataset.labels()
        return np.concatenate([labels + turn * self._dataset.num_classes for turn in range(self._turns)])

    def describe(self, index: int) -> str:
        return (
            f"{self._dataset.describe(index % len(self._dataset))} turned by {90 * self.turn(index)} degrees"
        )
