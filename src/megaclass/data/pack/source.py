"""What every source of images looks like to the packer."""

import hashlib
import os
from collections.abc import Callable, Iterable
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
    - ``root``: the directory at which the paths of a table begin, or the classes in a tar.
    - ``labels``, ``label_names``: files with the labels of a tar of images, see ``labelfile``.
    """

    where: str | None = None
    unpack_bits: tuple[int, int] | None = None
    class_depth: int = 1
    root: str | None = None
    labels: Path | None = None
    label_names: Path | None = None


@dataclass(frozen=True)
class Source:
    """Images to pack, in the order in which images of a class are packed.

    - ``kind``: for messages.
    - ``labels``: any integers, of shape (N,).
    - ``classes``: names by label, or None if labels are just numbers.
    - ``read``: an image by its row: encoded bytes, or uint8 (H, W) or (H, W, 3) RGB. Raises DamagedSampleError.
    - ``describe``: where a row lives, for error messages.
    - ``identity``: text that changes with the content of the source, as far as sizes and times tell.
    - ``in_order``: rows are read one after the other, and packed as they come, not class by class.
    """

    kind: str
    labels: np.ndarray
    classes: list[str] | None
    read: Callable[[int], bytes | np.ndarray]
    describe: Callable[[int], str]
    identity: Callable[[], str]
    in_order: bool = False
    close: Callable[[], None] = lambda: None


def digest(parts: Iterable[str | bytes]) -> str:
    """A short hash of the parts and the bounds between them."""
    total = hashlib.blake2b(digest_size=6)
    for part in parts:
        encoded = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        total.update(len(encoded).to_bytes(8, "little") + encoded)
    return total.hexdigest()


def stamp(path: str | Path) -> str:
    """Size and time of a file; the same as long as nobody wrote to it."""
    try:
        status = os.stat(path)  # noqa: PTH116  (a Path for each of millions of files takes as long again)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
