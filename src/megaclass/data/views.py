"""Data sets made of others, without a copy: several as one, some samples of one, and one in several orientations.

Shapes: N = samples, H, W = size of a decoded image, C = 3.
"""

import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from megaclass.data.dataset import Dataset, Sample, class_names, image_names


class ConcatDataset:
    """The samples of ``parts``, one part after the other, as one data set. ``titles`` are what users call the parts.

    The classes of a part are numbered behind those of the parts before it. ``classes`` are the names by label, if every
    part has names. Where two parts share a name, every name gets the title of its part in front, as ``ms1m/0001``.
    Memory: none a sample.
    """

    def __init__(self, parts: Sequence[Dataset], titles: Sequence[str]) -> None:
        self.parts = list(parts)
        self.starts = [0, *itertools.accumulate(len(part) for part in parts)]
        edges = [0, *itertools.accumulate(part.num_classes for part in parts)]
        self._first_labels, self.num_classes = edges[:-1], edges[-1]
        self.classes: list[str] | None = None
        named = [(title, class_names(part) or []) for title, part in zip(titles, self.parts, strict=True)]
        if all(names for _, names in named):
            self.classes = [name for _, names in named for name in names]
            if len(set(self.classes)) < self.num_classes:
                self.classes = [f"{title}/{name}" for title, names in named for name in names]

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, index: int) -> Sample:
        part, stored = self.place(index)
        encoded, label = self.parts[part].read(stored)
        return Sample(encoded, label + self._first_labels[part])

    def labels(self) -> np.ndarray:
        """Made anew at each call: nobody needs to keep them twice."""
        return np.concatenate(
            [part.labels() + first for part, first in zip(self.parts, self._first_labels, strict=True)]
        )

    def describe(self, index: int) -> str:
        part, stored = self.place(index)
        return self.parts[part].describe(stored)

    def place(self, index: int) -> tuple[int, int]:
        """The number of the part that holds sample ``index``, and the sample's number there."""
        part = bisect_right(self.starts, index) - 1  # of parts without samples, the one behind
        return part, index - self.starts[part]


class Subset:
    """The samples ``indices`` of ``dataset``, int64 (N,), in this order: labels and classes stay the same."""

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self.num_classes = dataset.num_classes
        self._dataset, self._indices = dataset, indices
        if names := image_names(dataset):
            self.names = [names[index] for index in indices.tolist()]
        if orient := getattr(dataset, "orient", None):
            self.orient = lambda index, image_HWC: orient(int(indices[index]), image_HWC)

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> Sample:
        return self._dataset.read(int(self._indices[index]))

    def labels(self) -> np.ndarray:
        return self._dataset.labels()[self._indices]

    def describe(self, index: int) -> str:
        return self._dataset.describe(int(self._indices[index]))


class OrientedClasses:
    """A dataset ``orientations`` (1, 2, 4 or 8) times: every image in another orientation is of a class of its own,
    the usual augmentation of few-shot character sets.

    Orientations 0 to 3 are turned by that many quarters, 4 to 7 are mirrored first. Sample ``i`` of orientation
    ``k`` is number ``k * len(dataset) + i`` and has the label ``label + k * dataset.num_classes``. Images are
    still encoded here: whoever decodes them calls :meth:`orient`, which is exact. Names of classes, where there are
    any, are as they were in orientation 0, and ``NAME@k`` in the others.
    """

    def __init__(self, dataset: Dataset, orientations: int) -> None:
        self.num_classes = dataset.num_classes * orientations
        self._dataset = dataset
        self._orientations = orientations

    @property
    def classes(self) -> list[str] | None:
        names = class_names(self._dataset)
        return names and [f"{name}@{k}" if k else name for k in range(self._orientations) for name in names]

    def __len__(self) -> int:
        return len(self._dataset) * self._orientations

    def orient(self, index: int, image_HWC: np.ndarray) -> np.ndarray:
        """The decoded image of sample ``index`` as that sample shows it."""
        orientation = index // len(self._dataset)
        if orientation >= 4:
            image_HWC = image_HWC[:, ::-1]
        return np.ascontiguousarray(np.rot90(image_HWC, orientation % 4))

    def read(self, index: int) -> Sample:
        orientation, stored = divmod(index, len(self._dataset))
        sample = self._dataset.read(stored)
        return Sample(sample.encoded, sample.label + orientation * self._dataset.num_classes)

    def labels(self) -> np.ndarray:
        labels = self._dataset.labels()
        return np.concatenate([labels + k * self._dataset.num_classes for k in range(self._orientations)])

    def describe(self, index: int) -> str:
        orientation, stored = divmod(index, len(self._dataset))
        return f"{self._dataset.describe(stored)} in orientation {orientation}"
