"""Turned and mirrored characters as further classes, the usual augmentation of few-shot character sets."""

import numpy as np

from megaclass.data.dataset import Dataset, Sample
from megaclass.errors import UserError

ORIENTATIONS = (1, 2, 4, 8)


class OrientedClasses:
    """A dataset ``orientations`` times: every image in another orientation is of a class of its own.

    Orientations 0 to 3 are turned by that many quarters, 4 to 7 are mirrored first. Sample ``i`` of orientation
    ``k`` is number ``k * len(dataset) + i`` and has the label ``label + k * dataset.num_classes``. Images are
    still encoded here: whoever decodes them calls :meth:`orient`, which is exact.
    """

    def __init__(self, dataset: Dataset, orientations: int) -> None:
        if orientations not in ORIENTATIONS:
            raise UserError(f"orientations: {orientations} is not one of {', '.join(map(str, ORIENTATIONS))}")
        self.num_classes = dataset.num_classes * orientations
        self._dataset = dataset
        self._orientations = orientations

    def __len__(self) -> int:
        return len(self._dataset) * self._orientations

    def orient(self, index: int, image_HWC: np.ndarray) -> np.ndarray:
        """The decoded image of sample ``index`` as that sample shows it."""
        orientation, _ = self._place(index)
        if orientation >= 4:
            image_HWC = image_HWC[:, ::-1]
        return np.ascontiguousarray(np.rot90(image_HWC, orientation % 4))

    def read(self, index: int) -> Sample:
        orientation, stored = self._place(index)
        sample = self._dataset.read(stored)
        return Sample(sample.encoded, sample.label + orientation * self._dataset.num_classes)

    def labels(self) -> np.ndarray:
        labels = self._dataset.labels()
        return np.concatenate([labels + k * self._dataset.num_classes for k in range(self._orientations)])

    def describe(self, index: int) -> str:
        orientation, stored = self._place(index)
        return f"{self._dataset.describe(stored)} in orientation {orientation}"

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return divmod(index, len(self._dataset))
