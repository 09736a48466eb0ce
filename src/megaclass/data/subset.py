"""Some samples of a dataset, in an order of their own."""

import numpy as np

from megaclass.data.dataset import Dataset, Sample


class Subset:
    """The samples ``indices`` of ``dataset``, int64 (len,), as a dataset: labels and classes stay the same."""

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self.num_classes = dataset.num_classes
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> Sample:
        return self._dataset.read(int(self._indices[index]))

    def labels(self) -> np.ndarray:
        """The labels of these samples, int64 of shape (len,)."""
        return self._dataset.labels()[self._indices]

    def describe(self, index: int) -> str:
        return self._dataset.describe(int(self._indices[index]))
