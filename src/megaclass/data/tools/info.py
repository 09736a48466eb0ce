"""What there is to say about a data set without decoding it.

Shapes: N = images, K = classes, S = side of a picture in pixels.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from megaclass.data.concat import ConcatDataset
from megaclass.data.dataset import DamagedSampleError, Dataset, class_names
from megaclass.data.decode import JPEG_START, check_header, decode
from megaclass.data.folder import FolderDataset
from megaclass.data.open import open_dataset, record_file, split_paths
from megaclass.data.threads import in_order
from megaclass.parallel.seeding import KeyedPermutation, derive_key

FORMATS: dict[str, tuple[int, bytes | tuple[bytes, ...]]] = {
    "JPEG": (0, JPEG_START),
    "PNG": (0, b"\x89PNG"),
    "WebP": (8, b"WEBP"),
    "BMP": (0, b"BM"),
    "GIF": (0, b"GIF8"),
    "TIFF": (0, (b"II*\0", b"MM\0*")),
    "PNM": (0, b"P"),
}
# Sets up to this size are looked at whole; of larger ones, so many images.
SAMPLED = 4096
_DRAWS = 100  # of images, for each class of a sheet: of a few classes, nearly surely all are met
_NETWORK_READS = 16  # at once: on a network file system each one waits


def info(
    path: str | Path,
    *,
    sampled: int = SAMPLED,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Any], Dataset]:
    """Describe the set under ``path`` (or several, see ``open_dataset``), and return it opened as well.

    Of sets with more than ``sampled`` images so many are read, chosen at random, always the same ones: ``looked_at``
    says how many, and sizes, formats and damage are of these. Sizes are in pixels and bytes; ``total_bytes`` of a
    large folder is estimated. A spread has the keys ``min``, ``median``, ``mean`` and ``max``. Memory is that of the
    index and the labels. Raises UserError for a set that does not open or has lost a label.
    """
    dataset = open_dataset(path)
    paths = split_paths(path)
    records = [record_file(part) for part in paths]
    counts_K = np.bincount(dataset.labels(), minlength=dataset.num_classes)
    looks = _look(dataset, sampled, progress)
    sound = [look for look in looks if look.height]
    sizes = Counter((look.height, look.width) for look in sound)
    names = {"classes.txt" if rec else "directories" for rec in records}
    found = {
        "path": str(path),
        "kind": " + ".join("record set" if rec else "image folder" for rec in records),
        "images": len(dataset),
        "classes": dataset.num_classes,
        "total_bytes": _total_bytes(dataset, records, looks),
        "images_per_class": _spread(counts_K[counts_K > 0]),
        "classes_without_images": int((counts_K == 0).sum()),
        "classes_with_one_image": int((counts_K == 1).sum()),
        "looked_at": len(looks),
        "damaged": len(looks) - len(sound),
        "formats": dict(Counter(look.format for look in sound).most_common()),
        "encoded_bytes": _spread([look.encoded_bytes for look in sound]),
        "height": _spread([look.height for look in sound]),
        "width": _spread([look.width for look in sound]),
        "common_sizes": [(height, width, count) for (height, width), count in sizes.most_common(3)],
        "class_names": "" if class_names(dataset) is None else " and ".join(sorted(names)),
        "index": ", ".join(_index(rec) for rec in records if rec),
    }
    return found, dataset


@dataclass(frozen=True)
class ClassSample:
    """A class for the sheet: its name or number, how many images it has, and some of them, uint8 SxSx3 RGB."""

    name: str
    count: int
    images: list[np.ndarray]


def sample_classes(
    dataset: Dataset, classes: int, per_class: int, side: int, seed: int = 0
) -> list[ClassSample]:
    """Up to ``per_class`` images of each of up to ``classes`` classes, in label order.

    The classes are those of images drawn by ``seed``: of a long tail few have but one image, as in training.
    Images are scaled to fit ``side`` pixels, on white. Damaged ones are grey with a cross.
    """
    labels_N, names = dataset.labels(), class_names(dataset)
    seen = labels_N[_drawn(len(labels_N), _DRAWS * classes, "sheet classes", seed)].tolist()
    samples = []
    for label in sorted(list(dict.fromkeys(seen))[:classes]):
        images = np.flatnonzero(labels_N == label)
        taken = images[_drawn(len(images), per_class, "sheet images", seed)].tolist()
        pictures = [_thumbnail(dataset, index, side) for index in taken]
        samples.append(ClassSample(names[label] if names else f"class {label}", len(images), pictures))
    return samples


class _Look(NamedTuple):
    """What an image says of itself; ``height`` 0: it is damaged."""

    format: str
    encoded_bytes: int
    height: int
    width: int


def _look(dataset: Dataset, sampled: int, progress: Callable[[int, int], None]) -> list[_Look]:
    if len(dataset) <= sampled:
        indices = np.arange(len(dataset))
    else:
        indices = np.sort(_drawn(len(dataset), sampled, "info", 0))  # in file order, for slow disks

    def look(index: int) -> _Look:
        try:
            encoded = dataset.read(index).encoded
            height, width = check_header(encoded, "")
        except DamagedSampleError:
            return _Look("", 0, 0, 0)
        return _Look(_format(encoded), len(encoded), height, width)

    looks = []
    for done, found in enumerate(in_order(look, indices.tolist(), _NETWORK_READS), 1):
        looks.append(found)
        progress(done, len(indices))
    return looks


def _drawn(count: int, wanted: int, what: str, seed: int) -> np.ndarray:
    """The first ``wanted`` of ``range(count)`` in an order that ``seed`` gives, int64."""
    permutation = KeyedPermutation(count, derive_key(what, seed))
    return permutation(torch.arange(min(count, wanted))).numpy()


def _format(encoded: bytes) -> str:
    return next((name for name, (at, magic) in FORMATS.items() if encoded.startswith(magic, at)), "other")


def _spread(values: Sequence[int] | np.ndarray) -> dict[str, float]:
    numbers = np.asarray(values if len(values) else [0])
    return {
        "min": int(numbers.min()),
        "median": float(np.median(numbers)),
        "mean": float(numbers.mean()),
        "max": int(numbers.max()),
    }


def _total_bytes(dataset: Dataset, records: list[Path | None], looks: list[_Look]) -> int:
    """Of record sets that of their files; of large folders an estimate."""
    parts = dataset.parts if isinstance(dataset, ConcatDataset) else [dataset]
    mean = fmean(look.encoded_bytes for look in looks)
    total = 0.0
    for rec, part in zip(records, parts, strict=True):
        if rec is not None:
            total += sum(file.stat().st_size for file in (rec, rec.with_suffix(".idx")) if file.exists())
        elif isinstance(part, FolderDataset) and len(part) <= SAMPLED:
            total += sum(part.path(index).stat().st_size for index in range(len(part)))
        else:
            total += mean * len(part)
    return round(total)


def _index(rec: Path) -> str:
    index = rec.with_suffix(".idx")
    return index.name if index.exists() else f"none ({index.name} is missing: records are found by a scan)"


def _thumbnail(dataset: Dataset, index: int, side: int) -> np.ndarray:
    canvas = np.full((side, side, 3), 255, np.uint8)
    try:
        image = decode(dataset.read(index).encoded, "")
    except DamagedSampleError:
        canvas[:] = 225
        cv2.line(canvas, (0, 0), (side, side), (160, 160, 160), 2)
        cv2.line(canvas, (side, 0), (0, side), (160, 160, 160), 2)
        return canvas
    scale = side / max(image.shape[:2])
    width, height = (max(1, round(scale * length)) for length in (image.shape[1], image.shape[0]))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(image, (width, height), interpolation=method)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas
