"""What every image source looks like to the loader."""

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


def class_names(dataset: Dataset) -> list[str] | None:
    """The names of a data set's classes in the order of its labels, where it has any."""
    return getattr(dataset, "classes", None)


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
