"""An ``.npz`` of images and labels as a source."""

import math
import zipfile
from pathlib import Path

import numpy as np

from megaclass.data.dataset import first_line
from megaclass.data.pack.source import Source, SourceOptions
from megaclass.errors import UserError, near_match


def open_npz(path: Path, options: SourceOptions, _known: list[str] | None) -> Source:
    """The rows of an ``.npz``; see ``pack``. Raises UserError."""
    unpack_bits = options.unpack_bits
    names = _array_names(path)
    labels = _array(path, names, "label", "labels")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: labels must be integers (N,), not {labels.dtype} {labels.shape}")
    images = _array(path, names, "images", "bits") if unpack_bits else _array(path, names, "images")
    _check_images(path, images, len(labels), unpack_bits)

    classes = None
    if "classes" in names:
        classes = [str(name) for name in _array(path, names, "classes").ravel()]
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(
                f"{path}: labels go from {labels.min()} to {labels.max()}, but classes names {len(classes)}; "
                "leave classes out or name them all"
            )
    rows = _select(path, names, len(labels), options.where) if options.where else np.arange(len(labels))

    def image(row: int) -> np.ndarray:
        stored = images[rows[row]]
        if unpack_bits is None:
            return stored
        return np.unpackbits(stored, count=math.prod(unpack_bits)).reshape(unpack_bits) * np.uint8(255)

    return Source(
        labels=labels[rows],
        classes=classes,
        read=image,
        describe=lambda row: f"{path} row {rows[row]}",
    )


def _array_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except Exception as error:
        raise _unreadable(path, error) from None


def _array(path: Path, known: list[str], *names: str) -> np.ndarray:
    """The first of the ``names`` that the file holds (``known``: all that it does). Nothing else is loaded."""
    name = next((name for name in names if name in known), None)
    if name is None:
        hint = "; give unpack_bits for packed bits" if "bits" in known and "images" in names else ""
        raise UserError(
            f"{path} has no array {' or '.join(names)}, only {', '.join(known) or 'nothing'}{hint}"
        )
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:
        raise _unreadable(path, error, name) from None


def _unreadable(path: Path, error: Exception, name: str = "") -> UserError:
    # Whatever it is: zipfile, its decompressors and NumPy's parser of headers raise some ten types in all.
    return UserError(f"{path} cannot be read as .npz: {name}{name and ': '}{first_line(error)}")


def _check_images(path: Path, images: np.ndarray, count: int, unpack_bits: tuple[int, int] | None) -> None:
    if unpack_bits is None:
        sound = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        wanted = "uint8 (N, H, W) or (N, H, W, 3)"
    else:
        row_bytes = -(-math.prod(unpack_bits) // 8)
        sound = images.ndim == 2 and images.shape[1] == row_bytes and min(unpack_bits) > 0
        wanted = f"uint8 (N, {row_bytes}), which is {unpack_bits[0]} x {unpack_bits[1]} bits a row"
    if not sound or images.dtype != np.uint8 or 0 in images.shape or len(images) != count:
        raise UserError(
            f"{path}: images must be {wanted}, as many as labels ({count}), not {images.dtype} {images.shape}"
        )


def _select(path: Path, names: list[str], count: int, where: str) -> np.ndarray:
    """Row numbers at which ``where``, ``"name=value"``, holds."""
    name, equals, text = where.partition("=")
    columns = [name for name in names if name not in ("images", "bits", "classes")]
    if not equals or name not in columns:
        raise UserError(
            f"where: {where!r} must be name=value, name being one of {', '.join(columns)}"
            f"{near_match(name, columns)}"
        )
    column = _array(path, names, name)
    if column.shape != (count,):
        raise UserError(
            f"where: {name} has the shape {column.shape}, but one value a row, {count}, is needed"
        )
    # As numbers, true and false are written: text serves for all kinds.
    rows = np.flatnonzero(np.char.lower(column.astype(str)) == text.lower())
    if len(rows) == 0:
        raise UserError(f"where: no row of {path} has {name}={text}")
    return rows
