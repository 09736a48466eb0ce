"""What every source of images looks like to the packer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source. Each kind takes some of them, and the others are refused with it.

    - ``where``: ``"name=value"`` keeps the rows of an ``.npz`` whose array ``name`` has that value.
    - ``unpack_bits``: (height, width) of images that an ``.npz`` holds as rows of ``np.packbits`` (in ``images`` or
      ``bits``); set bits become white.
    - ``class_depth``: how many levels down in a folder or tar the classes are.
    - ``root``: the directory at which the paths of a table begin.
    - ``labels``, ``label_names``: files with the labels of images that lie in no class directories, see ``labels``.
    """

    where: str | None = None
    unpack_bits: tuple[int, int] | None = None
    class_depth: int = 1
    root: str | None = None
    labels: str | Path | None = None
    label_names: str | Path | None = None


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
    close: Callable[[], None] = lambda: None
