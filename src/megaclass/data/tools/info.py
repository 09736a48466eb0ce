"""What there is to say about a data set without decoding it.

Shapes: N = images, K = classes, S = side of a picture in pixels.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megaclass.data.augment import EvalTransform
from megaclass.data.dataset import DamagedSampleError, Dataset, class_names
from megaclass.data.decode import Decoded, check_header, decode, format_of
from megaclass.data.open import kind_of, open_dataset, split_paths
from megaclass.data.sampler import drawn
from megaclass.data.threads import in_order

# Sets up to this size are looked at whole; of larger ones, so many images.
SAMPLED = 4096
_DRAWS = 100  # of images, for each class of a sheet: of a few classes, nearly surely all are met
_NETWORK_READS = 16  # at once: on a network file system each one waits


def info(
    path: str | Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, Any], Dataset]:
    """Describe the set under ``path`` (or several, see ``open_dataset``), and return it opened as well.

    Of sets with more than ``SAMPLED`` images so many are read, chosen at random, always the same ones: ``looked_at``
    says how many; sizes, formats and damage are of these, and ``total_bytes``, of all images, is estimated from
    them. Sizes are in pixels and bytes. A spread has the keys ``min``, ``median``, ``mean`` and ``max``. Raises
    UserError for a set that does not open or has lost a label.
    """
    dataset = open_dataset(path)
    counts_K = np.bincount(dataset.labels(), minlength=dataset.num_classes)
    looks = _look(dataset, progress)
    sound = [look for look in looks if look.height]
    sizes = Counter((look.height, look.width) for look in sound)
    encoded_bytes = _spread([look.encoded_bytes for look in looks])
    kinds = [kind_of(part) for part in split_paths(path)]
    found = {
        "path": str(path),
        "kind": " + ".join(kinds),
        "images": len(dataset),
        "classes": dataset.num_classes,
        "class_names": class_names(dataset) is not None,
        "total_bytes": round(encoded_bytes["mean"] * len(dataset)),
        "images_per_class": _spread(counts_K[counts_K > 0]),
        "classes_without_images": int((counts_K == 0).sum()),
        "classes_with_one_image": int((counts_K == 1).sum()),
        "looked_at": len(looks),
        "damaged": len(looks) - len(sound),
        "formats": dict(Counter(look.format for look in sound).most_common()),
        "encoded_bytes": encoded_bytes,
        "height": _spread([look.height for look in sound]),
        "width": _spread([look.width for look in sound]),
        "common_sizes": [(height, width, count) for (height, width), count in sizes.most_common(3)],
    }
    return found, dataset


@dataclass(frozen=True)
class ClassSample:
    """A class for the sheet: its name or number, how many images it has, and some of them, uint8 SxSx3 RGB."""

    name: str
    count: int
    images: list[np.ndarray]


def sample_classes(dataset: Dataset, classes: int, per_class: int, side: int) -> list[ClassSample]:
    """Up to ``per_class`` images of each of up to ``classes`` classes, in label order.

    The classes are those of images drawn at random: of a long tail few have but one image, as in training.
    Of images the central square is shown, scaled to ``side`` pixels. Damaged ones are grey.
    """
    labels_N, names = dataset.labels(), class_names(dataset)
    seen = labels_N[drawn(len(labels_N), _DRAWS * classes, "sheet classes", 0)].tolist()
    samples = []
    for label in sorted(list(dict.fromkeys(seen))[:classes]):
        images = np.flatnonzero(labels_N == label)
        taken = images[drawn(len(images), per_class, "sheet images", 0)].tolist()
        pictures = [_thumbnail(dataset, index, side) for index in taken]
        samples.append(ClassSample(names[label] if names else f"class {label}", len(images), pictures))
    return samples


class _Look(NamedTuple):
    """What an image says of itself; ``height`` 0: it is damaged."""

    format: str
    encoded_bytes: int
    height: int
    width: int


def _look(dataset: Dataset, progress: Callable[[int, int], None]) -> list[_Look]:
    indices = np.sort(drawn(len(dataset), SAMPLED, "info", 0))  # in file order, for slow disks

    def look(index: int) -> _Look:
        encoded = b""
        try:
            encoded = dataset.read(index).encoded
            height, width = check_header(encoded, "")
        except DamagedSampleError:
            return _Look("", len(encoded), 0, 0)
        return _Look(format_of(encoded), len(encoded), height, width)

    looks = []
    for found in in_order(look, indices.tolist(), _NETWORK_READS):
        looks.append(found)
        progress(len(looks), len(indices))
    return looks


def _spread(values: Sequence[int] | np.ndarray) -> dict[str, float]:
    numbers = np.asarray(values if len(values) else [0])
    return {
        "min": int(numbers.min()),
        "median": float(np.median(numbers)),
        "mean": float(numbers.mean()),
        "max": int(numbers.max()),
    }


def _thumbnail(dataset: Dataset, index: int, side: int) -> np.ndarray:
    try:
        decoded = Decoded.whole(decode(dataset.read(index).encoded, ""))
    except DamagedSampleError:
        return np.full((side, side, 3), 160, np.uint8)
    picture_SSC = np.empty((side, side, 3), np.uint8)
    EvalTransform(side, resize=side)(decoded, np.empty(0), picture_SSC)
    return picture_SSC
