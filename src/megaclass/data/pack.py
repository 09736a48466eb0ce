"""Pack images into a record set: ``megaclass data pack SOURCE OUTPUT``.

A source becomes labels, class names where they are known, and a function that gives one JPEG at a time, so
that no more than one image is in memory beside the source itself.
"""

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from megaclass.data.dataset import first_line
from megaclass.data.decode import JPEG_START, check_header
from megaclass.data.folder import FolderDataset
from megaclass.data.records.writer import RecordWriter
from megaclass.errors import UserError, near_match


@dataclass(frozen=True)
class PackSummary:
    """What was packed: counts, and the size of the ``.rec`` file in bytes."""

    path: Path
    images: int
    classes: int
    rec_bytes: int


class _Source(NamedTuple):
    labels: np.ndarray  # any integers, shape (N,)
    classes: list[str] | None  # names by label
    image: Callable[[int], bytes | np.ndarray]  # a JPEG to pass through, or uint8 (H, W) or (H, W, 3) RGB
    describe: Callable[[int], str]


def pack(
    source: str | Path,
    output: str | Path,
    *,
    image_size: int | None = None,
    quality: int = 95,
    where: str | None = None,
    invert: bool = False,
    unpack_bits: tuple[int, int] | None = None,
    class_depth: int = 1,
    index_record: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> PackSummary:
    """Write the images of ``source`` to ``output/train.rec``, grouped by class, labels renumbered 0..K-1.

    ``source`` is an image folder (a sub-directory a class) or an ``.npz`` with ``images``, uint8 (N, H, W) or
    (N, H, W, 3) RGB, and ``label`` or ``labels``, integers (N,), and perhaps ``classes``, names by label.

    - ``image_size``: height and width to resize to. Without it JPEG files keep their very bytes.
    - ``quality``: of the JPEG, 1 to 100.
    - ``where``: ``"name=value"`` keeps the rows of the ``.npz`` whose array ``name`` has that value.
    - ``invert``: black becomes white.
    - ``unpack_bits``: (height, width) of images that the ``.npz`` holds as rows of ``np.packbits`` (in
      ``images`` or ``bits``); set bits become white.
    - ``class_depth``: how many levels down in an image folder the classes are.
    - ``index_record``: the layout, see RecordWriter.
    - ``progress``: called with (images done, images in all).

    Raises UserError for a source that cannot be packed; ``output`` then holds nothing new.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size: {image_size} is not a size; use 1 or more pixels")
    if not 1 <= quality <= 100:
        raise UserError(f"quality: {quality} is not a JPEG quality; use 1 to 100")
    source = Path(source)
    keep_bytes = image_size is None and not invert
    if source.is_dir():
        if where is not None or unpack_bits is not None:
            raise UserError(
                f"{source} is a folder; where and unpack_bits are for .npz sources, leave them out"
            )
        found = _from_folder(source, keep_bytes, class_depth)
    elif source.suffix == ".npz" and source.is_file():
        found = _from_npz(source, where, unpack_bits)
    else:
        raise UserError(f"{source} is neither an image folder nor an .npz file that exists")

    kept, labels = np.unique(found.labels, return_inverse=True)
    classes = None if found.classes is None else [found.classes[label] for label in kept]
    sizes = set()
    with RecordWriter(output, index_record=index_record, classes=classes) as writer:
        for done, row in enumerate(np.argsort(labels, kind="stable").tolist(), 1):
            image = found.image(row)
            try:
                if isinstance(image, np.ndarray):
                    image = _encode(image, image_size, quality, invert)
            except (ValueError, cv2.error, MemoryError) as error:
                raise UserError(f"{found.describe(row)} cannot be packed: {first_line(error)}") from None
            sizes.add(check_header(image, found.describe(row)))
            writer.write(image, int(labels[row]))
            if progress is not None:
                progress(done, len(labels))
        writer.image_size = sizes.pop() if len(sizes) == 1 else None
    return PackSummary(writer.path, writer.count, len(kept), writer.path.stat().st_size)


def _encode(image: np.ndarray, image_size: int | None, quality: int, invert: bool) -> bytes:
    """JPEG bytes of uint8 (H, W) grey or (H, W, 3) RGB."""
    if image_size is not None and image.shape[:2] != (image_size, image_size):
        shrinks = image_size <= min(image.shape[:2])
        # The mean over the area is right for shrinking; enlarging, it would repeat pixels.
        image = cv2.resize(
            image, (image_size, image_size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
    if invert:
        image = 255 - image
    if image.ndim == 2:
        grey = np.ascontiguousarray(image)[:, :, None]
        return simplejpeg.encode_jpeg(grey, quality, colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, colorspace="RGB")


def _from_folder(root: Path, keep_bytes: bool, class_depth: int) -> _Source:
    folder = FolderDataset(root, class_depth)

    def image(row: int) -> bytes | np.ndarray:
        encoded = folder.read(row).encoded
        check_header(encoded, folder.describe(row))
        if keep_bytes and encoded.startswith(JPEG_START):
            return encoded
        # 8 bits, grey stays grey. A rotation noted by a camera is ignored, as in bytes passed through.
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
        except (cv2.error, MemoryError):
            decoded = None
        if decoded is None:
            raise UserError(f"{folder.describe(row)} is not an image that can be decoded; remove or mend it")
        return decoded if decoded.ndim == 2 else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)

    return _Source(folder.labels(), folder.classes, image, folder.describe)


def _from_npz(path: Path, where: str | None, unpack_bits: tuple[int, int] | None) -> _Source:
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
    rows = np.arange(len(labels)) if where is None else _select(path, names, len(labels), where)

    def image(row: int) -> np.ndarray:
        stored = images[rows[row]]
        if unpack_bits is None:
            return stored
        return np.unpackbits(stored, count=math.prod(unpack_bits)).reshape(unpack_bits) * np.uint8(255)

    return _Source(labels[rows], classes, image, lambda row: f"{path} row {rows[row]}")


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
    if unpack_bits is not None:
        if min(unpack_bits) < 1:
            raise UserError(f"unpack_bits: {unpack_bits} is not a height and a width; use 1 or more pixels")
        row_bytes = -(-math.prod(unpack_bits) // 8)
        sound = images.ndim == 2 and images.shape[1] == row_bytes
        wanted = f"uint8 (N, {row_bytes}), which is {unpack_bits[0]} x {unpack_bits[1]} bits a row"
    else:
        sound = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        wanted = "uint8 (N, H, W) or (N, H, W, 3)"
    if not sound or images.dtype != np.uint8 or 0 in images.shape:
        raise UserError(f"{path}: images must be {wanted}, not {images.dtype} {images.shape}")
    if len(images) != count:
        raise UserError(f"{path}: {len(images)} images, but {count} labels; they must be as many")


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
    value: bool | int | str = text
    if column.dtype.kind == "b":
        known = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in known:
            raise UserError(f"where: {name} holds true and false, {text!r} is neither")
        value = known[text.lower()]
    elif column.dtype.kind in "iu":
        try:
            value = int(text)
        except ValueError:
            raise UserError(f"where: {name} holds whole numbers, {text!r} is not one") from None
    elif column.dtype.kind != "U":
        raise UserError(
            f"where: {name} holds {column.dtype}; true/false, whole numbers or text can be selected"
        )
    rows = np.flatnonzero(column == value)
    if len(rows) == 0:
        raise UserError(f"where: no row of {path} has {name}={text}")
    return rows
