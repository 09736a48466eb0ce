"""Images as people have them, as data sets: files and directories by name, pictures in memory.

Shapes: N = images, H, W = height and width of an image.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from megaclass.data.augment import resized
from megaclass.data.dataset import Dataset, Sample, Unlabelled
from megaclass.data.folder import IMAGE_SUFFIXES, images_under, read_file
from megaclass.data.imagelist import ImageList
from megaclass.data.loader import eval_batches
from megaclass.data.views import Subset
from megaclass.errors import UserError
from megaclass.evaluation.evaluators import ImageReader


class ImageFiles(ImageList):
    """Image files as a data set, called as they were named."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(".", paths)

    def describe(self, index: int) -> str:
        return self.names[index]


def find_images(paths: Sequence[str]) -> ImageFiles:
    """The files among ``paths`` as they are named, and for each directory all images below it, sorted.

    UserError for a path that is neither, and for a directory without images.
    """
    found: list[str] = []
    for name in paths:
        # Unlike those of Path, these two say no where the system refuses to look.
        if os.path.isfile(name):  # noqa: PTH113
            found.append(name)
            continue
        below = images_under(Path(name)) if os.path.isdir(name) else []  # noqa: PTH112
        if not below:
            raise UserError(
                f"{name!r}: neither a file nor a directory with images ({', '.join(IMAGE_SUFFIXES)}) below it; name "
                "images"
            )
        found += [str(Path(name) / image) for image in below]
    return ImageFiles(found)


class Pictures(Unlabelled):
    """What a program holds, as a data set of N images. One, or a sequence, of: a path; a PIL image; a NumPy array of
    uint8 (H, W, 3), RGB, or (H, W), grey; a tensor of uint8 or of 0..1 (3, H, W). A 4-dimensional array or tensor is
    as many images. UserError for anything else.
    """

    def __init__(self, images: Any) -> None:
        single = isinstance(images, str | os.PathLike) or not isinstance(images, Iterable)
        single |= getattr(images, "ndim", 4) < 4 or hasattr(images, "convert")
        self._images = [images] if single else list(images)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Sample:
        """The image, encoded without loss where it is none of a file."""
        image = self._images[index]
        if isinstance(image, str | os.PathLike):
            return Sample(read_file(Path(image)), 0)
        rgb_HWC = _pixels(image, self.describe(index))
        return Sample(cv2.imencode(".bmp", rgb_HWC[..., ::-1])[1].tobytes(), 0)

    def describe(self, index: int) -> str:
        image = self._images[index]
        return os.fsdecode(image) if isinstance(image, str | os.PathLike) else f"image {index}"


def _pixels(image: Any, where: str) -> np.ndarray:
    """uint8 (H, W, 3), RGB."""
    if hasattr(image, "convert"):  # of PIL, which need not be installed
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, torch.Tensor):
        if image.is_floating_point():
            if not (image.min() >= 0 and image.max() <= 1):
                raise UserError(f"{where}: a tensor of floats holds 0 to 1; give uint8 for 0 to 255")
            image = (image * 255).round().to(torch.uint8)
        image = image.movedim(0, -1).cpu().numpy() if image.ndim == 3 else image.cpu().numpy()
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or 0 in image.shape:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"{where}: {given} is no image; give a path, a PIL image, or uint8 pixels")
    if image.ndim == 2 or image.shape[2:] == (1,):
        image = image.reshape(*image.shape[:2], 1).repeat(3, 2)
    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"{where}: shape {image.shape}; give arrays of (height, width, 3), tensors of (3, height, width)"
        )
    return image


def thumbnails(dataset: Dataset, images: ImageReader, numbers: Sequence[int], side: int) -> list[np.ndarray]:
    """These images as the model sees them, made small: uint8 (side, side, 3)."""
    shown = Subset(dataset, np.array(numbers))
    batches = eval_batches(shown, images.transform, images.batch_size, workers=images.workers)
    return [resized(image_SSC, side, side) for batch in batches for image_SSC in batch.images.numpy()]
