"""What every source of images looks like to the packer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Source:
    """Images to pack, in the order in which images of a class are packed.

    - ``labels``: any integers, of shape (N,).
    - ``classes``: names by label, or None if labels are just numbers.
    - ``read``: an image by its row: encoded bytes, or uint8 (H, W) or (H, W, 3) RGB. Raises DamagedSampleError.
    - ``describe``: where a row lives, for error messages.
    """

    labels: np.ndarray
    classes: list[str] | None
    read: Callable[[int], bytes | np.ndarray]
    describe: Callable[[int], str]
