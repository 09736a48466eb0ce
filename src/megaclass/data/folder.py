"""Image folders: a sub-directory is a class, as in ``train/n01440764/*.JPEG``."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from megaclass.data.dataset import DamagedSampleError, Sample
from megaclass.errors import UserError
from megaclass.files import read_regular

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"),
    *(".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".pbm"),
)
# More than any image takes, and little enough to hold: a few kilobytes of zip file can expand without end.
MAX_BYTES = 1 << 28


class FolderDataset:
    """The images under ``root``: each sub-directory is a class, numbered in the order of sorted names.

    ``class_depth`` 2 takes the directories two levels down as classes, named ``alphabet/character``.
    Images are found at any depth, in sorted order; hidden files and directories are left out, and a warning tells
    how many files of which other suffixes are no images.
    ``classes`` are the names in label order, ``names`` the paths of the images. Raises UserError where there is no
    class or no image.
    """

    def __init__(self, root: str | Path, class_depth: int = 1) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"{self.root} is not a directory; name one that holds a sub-directory a class")
        found = (path for path in self.root.glob("/".join("*" * class_depth)) if path.is_dir())
        names = (path.relative_to(self.root).as_posix() for path in found)
        self.classes = sorted(name for name in names if not name.startswith(".") and "/." not in name)
        if not self.classes:
            raise UserError(
                f"{self.root}: there are no class directories at depth {class_depth}; put the images of each class "
                "into one, or pack them with their labels (megaclass data pack --labels FILE)"
            )
        if broken := [name for name in self.classes if "\n" in name]:
            raise UserError(
                f"{self.root}: {broken[0]!r} has a line feed, and names of classes are kept a line each; rename it"
            )
        self.num_classes = len(self.classes)
        self.names: list[str] = []  # relative to root: strings are a third of the size of Path objects
        counts = []
        others: Counter[str] = Counter()
        for name in self.classes:
            images = images_under(self.root, name, others)
            if not images:
                # The class keeps its number: training and validation folders must agree on numbers.
                logger.warning("%s holds no images", self.root / name)
            self.names += images
            counts.append(len(images))
        tell_left_out(self.root, others)
        if not self.names:
            raise UserError(f"{self.root} holds no images; {', '.join(IMAGE_SUFFIXES)} are read")
        self._labels = np.repeat(np.arange(len(counts)), counts)
        self._labels.flags.writeable = False

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        """Return sample ``index``. Safe to call from several threads."""
        return Sample(read_file(self.path(index)), int(self._labels[index]))

    def labels(self) -> np.ndarray:
        """All labels, read-only int64 of shape (len,)."""
        return self._labels

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    def describe(self, index: int) -> str:
        return str(self.path(index))


def read_file(path: Path) -> bytes:
    """The bytes of an image file. Raises DamagedSampleError."""
    try:
        encoded = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, too
        reason = error.strerror if isinstance(error, OSError) else error
        raise DamagedSampleError(f"{path} cannot be read: {reason}; mend that") from None
    if not encoded:
        raise DamagedSampleError(f"{path} is an empty file; remove it or copy it again")
    return encoded


def images_under(root: Path, name: str = ".", others: Counter[str] | None = None) -> list[str]:
    """Sorted paths, relative to ``root``, of the images at any depth of its sub-directory ``name``.

    ``others`` counts the suffixes of the files that are no images. Hidden files are neither.
    """
    found = []
    for directory, subdirectories, files in os.walk(root / name):
        subdirectories[:] = [sub for sub in subdirectories if not sub.startswith(".")]
        relative = Path(directory).relative_to(root)
        for file in files:
            if file.startswith("."):
                continue
            if file.lower().endswith(IMAGE_SUFFIXES):
                found.append(str(relative / file))
            elif others is not None:
                others[suffix_of(file)] += 1
    return sorted(found)


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without suffix"  # noqa: PTH122 - as fast as can be


def tell_left_out(where: object, others: Counter[str]) -> None:
    """Warn of files that were passed over, counted by suffix."""
    if others:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(5))
        logger.warning("%s: files that are left out, being no images by their suffix: %s", where, counts)
