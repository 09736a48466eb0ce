"""What every image source looks like to the loader."""

from collections import Counter
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from megaclass.errors import UserError
from megaclass.files import MAX_TEXT_BYTES, open_regular


class DamagedSampleError(UserError):
    """One sample cannot be used; the others may be sound, so another one may stand in for it in training."""


class Sample(NamedTuple):
    """One stored image, still encoded (JPEG or any format OpenCV decodes), and its class."""

    encoded: bytes
    label: int


class Dataset(Protocol):
    """Random access to encoded images. ``read`` is called from several threads at once."""

    num_classes: int

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Return sample ``index``. Raises DamagedSampleError (naming file and record) if it is damaged, and
        a plain UserError for what concerns more than this sample: a label that is no class of the set."""
        ...

    def labels(self) -> np.ndarray:
        """All labels, int64 of shape (len,). Raises UserError (naming file and record) for one that is lost."""
        ...

    def describe(self, index: int) -> str:
        """Where sample ``index`` lives, for error messages: file and record number or path."""
        ...


class Unlabelled(Sized):
    """Images without classes to learn: every label is 0."""

    num_classes = 1

    def labels(self) -> np.ndarray:
        """Zeros, int64 of shape (len,)."""
        return np.zeros(len(self), dtype=np.int64)


def class_names(dataset: Dataset) -> list[str] | None:
    """The names of a data set's classes in the order of its labels, where it has any."""
    return getattr(dataset, "classes", None)


def places_among(known: Sequence[str], names: Sequence[str], option: str) -> np.ndarray:
    """The number of each class of the same name among the known ones, int64; -1: none has it. UserError, naming the
    option, where the two differ and a name is that of several classes."""
    if list(names) == list(known):
        return np.arange(len(names))
    for name, count in (Counter(side).most_common(1)[0] for side in (known, names)):
        if count > 1:
            raise UserError(f"{option}: {count} classes are called {name!r}; give each a name of its own")
    place = {name: number for number, name in enumerate(known)}
    return np.fromiter((place.get(name, -1) for name in names), np.int64, len(names))


def image_names(dataset: Dataset) -> list[str] | None:
    """The paths of a data set's images within its directory, in order, where they have any."""
    return getattr(dataset, "names", None)


def read_text(path: Path, option: str, errors: str = "strict") -> str:
    """The text of a file that an option names. Raises UserError."""
    try:
        with open_regular(path, MAX_TEXT_BYTES, encoding="utf-8-sig", errors=errors) as file:
            return str(file.read())
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read: {error.strerror}; name another file") from None
    except UnicodeDecodeError:
        raise UserError(f"{option}: {path} is not a text file in UTF-8; convert it") from None
