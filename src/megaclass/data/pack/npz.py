"""An ``.npz`` of images and labels as a source."""

import math
from pathlib import Path

import numpy as np

from megaclass.data.pack.source import Source
from megaclass.errors import UserError, first_line, near_match


def open_npz(
    path: Path,
    _known: list[str] | None,
    where: str | None = None,
    unpack_bits: tuple[int, int] | None = None,
) -> Source:
    """The rows of an ``.npz`` with ``images``, uint8 (N, H, W) or (N, H, W, 3) RGB, and ``label`` or ``labels``,
    integers (N,), and perhaps ``classes``, names by label. Raises UserError.

    ``where``: ``"name=value"`` keeps the rows whose array ``name`` has that value. ``unpack_bits``: (height, width) of
    images that are rows of ``np.packbits``, in ``images`` or ``bits``; set bits become white.
    """
    bits = unpack_bits
    column_name, _, value = (where or "").partition("=")
    wanted = {"label", "labels", "images", "classes", column_name} | ({"bits"} if bits else set())
    try:
        with np.load(path) as archive:
            held = archive.files
            arrays = {name: np.asarray(archive[name]) for name in held if name in wanted}
    except Exception as error:
        # Whatever it is: zipfile, its decompressors and NumPy's parser of headers raise some ten types in all.
        # NumPy's advice on pickles is to switch its protection off.
        why = "it holds objects, or is no archive" if "pickle" in str(error) else first_line(error)
        raise UserError(f"{path} cannot be read as .npz: {why}; save arrays of numbers by numpy.savez") from None
    labels, images = arrays.get("label", arrays.get("labels")), arrays.get("images", arrays.get("bits"))
    if labels is None or images is None:
        raise UserError(
            f"{path} needs arrays images (or bits, with --unpack-bits) and label, but holds {', '.join(held) or 'none'}"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: labels must be integers (N,), not {labels.dtype} {labels.shape}")
    _check_images(path, images, len(labels), bits)
    classes = None
    if "classes" in arrays:
        classes = [str(name) for name in arrays["classes"].ravel()]
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(
                f"{path}: labels go from {labels.min()} to {labels.max()}, but classes names {len(classes)}; "
                "leave classes out or name them all"
            )
    rows = np.arange(len(labels))
    if where is not None:
        column = arrays.get(column_name)
        if column is None or column.shape != labels.shape:
            raise UserError(
                f"--where: {where!r} must be name=value, name being an array with one value a row"
                f"{near_match(column_name, held)}"
            )
        # As numbers, true and false are written: text serves for all kinds.
        rows = np.flatnonzero(np.char.lower(column.astype(str)) == value.lower())
        if len(rows) == 0:
            raise UserError(f"--where: no row of {path} has {where}")

    def image(row: int) -> np.ndarray:
        stored = images[rows[row]]
        if bits is None:
            return stored
        return np.unpackbits(stored, count=math.prod(bits)).reshape(bits) * np.uint8(255)

    return Source(labels=labels[rows], classes=classes, read=image, describe=lambda row: f"{path} row {rows[row]}")


def _check_images(path: Path, images: np.ndarray, count: int, bits: tuple[int, int] | None) -> None:
    if bits is None:
        sound = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        wanted = "uint8 (N, H, W) or (N, H, W, 3)"
    else:
        row_bytes = -(-math.prod(bits) // 8)
        sound = images.ndim == 2 and images.shape[1] == row_bytes and min(bits) > 0
        wanted = f"uint8 (N, {row_bytes}), which is {bits[0]} x {bits[1]} bits a row"
    if not sound or images.dtype != np.uint8 or 0 in images.shape or len(images) != count:
        raise UserError(
            f"{path}: images must be {wanted}, as many as labels ({count}), not {images.dtype} {images.shape}"
        )
