"""What every image source looks like to the loader."""

from typing import NamedTuple, Protocol

import numpy as np


class Sample(NamedTuple):
    """One stored image, still encoded (JPEG or any format OpenCV decodes), and its class."""

    encoded: bytes
    label: int


class Dataset(Protocol):
    """Random access to encoded images. ``read`` is called from several threads at once."""

    num_classes: int

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Return sample ``index``. Raises UserError (naming file and record) if it is damaged."""
        ...

    def labels(self) -> np.ndarray:
        """All labels, int64 of shape (len,)."""
        ...

    def describe(self, index: int) -> str:
        """Where sample ``index`` lives, for error messages: file and record number or path."""
        ...
