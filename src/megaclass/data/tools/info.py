"""What there is to say about a data set without decoding it.

Shapes: N = images, K = classes, S = side of a picture in pixels.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
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

FORMATS = {
    "JPEG": (0, JPEG_START),
    "PNG": (0, b"\x89PNG"),
    "WebP": (8, b"WEBP"),
    "BMP": (0, b"BM"),
    "GIF": (0, b"GIF8"),
}
# Sets up to this size are looked at whole; of larger ones, so many images.
SAMPLED = 4096
_DRAWS = 100  # of images, for each class of a sheet: of a few classes, nearly surely all are met
_NETWORK_READS = 16  # at once: on a network file system each one waits


class Spread(NamedTuple):
    """The distribution of a number."""

    min: float
    median: float
    mean: float
    max: float


@dataclass(frozen=True)
class SetInfo:
    """What ``megaclass data info`` tells. Sizes are (height, width) in pixels, of the images looked at."""

    path: str
    kind: str
    images: int
    classes: int
    total_bytes: int  # of the files; estimated from the images looked at where those are not all, in a folder
    images_per_class: Spread
    classes_without_images: int
    classes_with_one_image: int
    looked_at: int
    damaged: int  # of those: cannot be read, or no header
    formats: dict[str, int]
    encoded_bytes: Spread
    height: Spread
    width: Spread
    common_sizes: list[tuple[int, int, int]]  # height, width, images: the three commonest
    class_names: str  # where they come from; empty: classes have none
    index: str

    def row(self) -> dict[str, Any]:
        """For JSON."""
        spreads = {name: value._asdict() for name, value in vars(self).items() if isinstance(value, Spread)}
        return asdict(self) | spreads


def info(
    path: str | Path, *, sampled: int = SAMPLED, progress: Callable[[int, int], None] | None = None
) -> tuple[SetInfo, Dataset]:
    """Describe the set under ``path`` (or several, see ``open_dataset``), and return it opened as well.

    Of sets with more than ``sampled`` images so many are read, chosen at random, always the same ones. Memory
    is that of the index and the labels. Raises UserError for a set that does not open or has lost a label.
    """
    dataset = open_dataset(path)
    paths = split_paths(path)
    counts_K = np.bincount(dataset.labels(), minlength=dataset.num_classes)
    held_K = counts_K[counts_K > 0]
    looks = _look(dataset, sampled, progress)
    sizes = Counter((look.height, look.width) for look in looks if look.height)
    found = SetInfo(
        path=str(path),
        kind=" + ".join(_kind(part) for part in paths),
        images=len(dataset),
        classes=dataset.num_classes,
        total_bytes=_total_bytes(dataset, paths, looks),
        images_per_class=_spread(held_K),
        classes_without_images=int((counts_K == 0).sum()),
        classes_with_one_image=int((counts_K == 1).sum()),
        looked_at=len(looks),
        damaged=sum(not look.height for look in looks),
        formats=dict(Counter(look.format for look in looks if look.height).most_common()),
        encoded_bytes=_spread([look.encoded_bytes for look in looks if look.height]),
        height=_spread([look.height for look in looks if look.height]),
        width=_spread([look.width for look in looks if look.height]),
        common_sizes=[(height, width, count) for (height, width), count in sizes.most_common(3)],
        class_names=_names_from(dataset, paths),
        index=", ".join(filter(None, map(_index, paths))),
    )
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


def _look(dataset: Dataset, sampled: int, progress: Callable[[int, int], None] | None) -> list[_Look]:
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
        if progress is not None:
            progress(done, len(indices))
    return looks


def _drawn(count: int, wanted: int, what: str, seed: int) -> np.ndarray:
    """The first ``wanted`` of ``range(count)`` in an order that ``seed`` gives, int64."""
    permutation = KeyedPermutation(count, derive_key(what, seed))
    return permutation(torch.arange(min(count, wanted))).numpy()


def _format(encoded: bytes) -> str:
    return next((name for name, (at, magic) in FORMATS.items() if encoded.startswith(magic, at)), "other")


def _spread(values: Any) -> Spread:
    if len(values) == 0:
        return Spread(0, 0, 0, 0)
    if isinstance(values, np.ndarray):
        return Spread(int(values.min()), float(np.median(values)), float(values.mean()), int(values.max()))
    return Spread(min(values), float(median(values)), fmean(values), max(values))


def _kind(path: Path) -> str:
    return "image folder" if record_file(path) is None else "record set"


def _total_bytes(dataset: Dataset, paths: list[Path], looks: list[_Look]) -> int:
    parts = dataset.parts if isinstance(dataset, ConcatDataset) else [dataset]
    mean = fmean(look.encoded_bytes for look in looks)
    total = 0.0
    for path, part in zip(paths, parts, strict=True):
        rec = record_file(path)
        if rec is not None:
            idx = rec.with_suffix(".idx")
            total += rec.stat().st_size + (idx.stat().st_size if idx.exists() else 0)
        elif isinstance(part, FolderDataset) and len(part) <= SAMPLED:
            total += sum(os.path.getsize(part.path(index)) for index in range(len(part)))  # noqa: PTH202 - faster
        else:
            total += mean * len(part)
    return round(total)


def _names_from(dataset: Dataset, paths: list[Path]) -> str:
    if class_names(dataset) is None:
        return ""
    kinds = {"directories" if record_file(path) is None else "classes.txt" for path in paths}
    return " and ".join(sorted(kinds))


def _index(path: Path) -> str:
    rec = record_file(path)
    if rec is None:
        return ""
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
