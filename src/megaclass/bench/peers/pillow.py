"""What torchvision's users have on a CPU, as a contender: ImageFolder, Pillow and a DataLoader with processes.

torchvision itself where it can be imported. Elsewhere its few lines between Pillow and PyTorch are written out
here, with the same calls of both (torchvision 0.26: transforms/transforms.py, transforms/_functional_pil.py,
datasets/folder.py), and the row says so.

Shapes: B = images of a batch, C = 3 channels (RGB), S = image size.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from megaclass.bench.loader.cases import LoaderCase
from megaclass.bench.loader.contender import Order, Turn, steps_of_turn, whole_pass
from megaclass.data.folder import FolderDataset
from megaclass.parallel.groups import World

NAME = "pillow"
SOURCES = ("folder",)
ON_DEVICE = False


def missing(case: LoaderCase) -> str:
    """Why it cannot be measured here, or an empty string."""
    return "" if importlib.util.find_spec("PIL") else "Pillow is not installed: pip install pillow"


class Pillow:
    """uint8 batches (BxCxSxS) in shared memory, from as many processes as the case has threads."""

    def __init__(self, case: LoaderCase, world: World, options: dict[str, Any]) -> None:
        import PIL

        folder = Path(options["directory"])
        dataset, self._transforms = _with_torchvision(folder, case) or (Images(folder, case), "written out")
        self._version = PIL.__version__
        self._case = case
        self._steps = _Steps(Order(case, len(dataset)))
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self._steps,
            num_workers=case.threads,
            prefetch_factor=case.prefetch,
            persistent_workers=True,
        )

    def turn(self, index: int) -> Turn:
        self._steps.steps = steps_of_turn(self._case, index)
        return whole_pass(self._drain)

    def _drain(self) -> None:
        for _ in self.loader:
            pass

    def facts(self) -> dict[str, Any]:
        return {"version": self._version, "transforms": self._transforms}


class _Steps(Sampler[list[int]]):
    """The samples of the steps that are asked for next, a list a batch."""

    def __init__(self, order: Order) -> None:
        self._order, self.steps = order, range(0)

    def __iter__(self) -> Iterator[list[int]]:
        return (self._order.of_step(step)[0].tolist() for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def _with_torchvision(folder: Path, case: LoaderCase) -> tuple[Any, str] | None:
    """ImageFolder with torchvision's own transforms, or None where it is not to be had."""
    try:
        import torchvision
        from torchvision import datasets, transforms
    except Exception:  # one that was built for another torch raises whatever it likes
        return None
    size = case.image_size
    steps = {
        "faces": [transforms.RandomHorizontalFlip()],
        "imagenet": [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()],
        "imagenet-eval": [transforms.Resize(256), transforms.CenterCrop(size)],
    }[case.workload]
    chain = transforms.Compose([*steps, transforms.PILToTensor()])
    return datasets.ImageFolder(str(folder), chain), f"torchvision {torchvision.__version__}"


class Images(Dataset[tuple[Tensor, int]]):
    """torchvision's ImageFolder, with the transforms of a workload written out."""

    def __init__(self, folder: Path, case: LoaderCase) -> None:
        files = FolderDataset(folder)
        labels = files.labels().tolist()
        self._samples = [(str(files.path(index)), label) for index, label in enumerate(labels)]
        chains: dict[str, Callable[[Any], Any]] = {
            "faces": _flip,
            "imagenet": lambda image: _flip(_random_resized_crop(image, case.image_size)),
            "imagenet-eval": lambda image: _centre(image, 256, case.image_size),
        }
        self._transform = chains[case.workload]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        path, label = self._samples[index]
        with Path(path).open("rb") as file:
            image = Image.open(file).convert("RGB")
        pixels_SSC = torch.as_tensor(np.array(self._transform(image), copy=True))
        return pixels_SSC.permute((2, 0, 1)), label


def _flip(image: Any) -> Any:
    from PIL import Image

    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image


def _random_resized_crop(image: Any, size: int) -> Any:
    from PIL import Image

    left, top, width, height = _random_box(*image.size)
    return image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)


def _random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height): 0.08 to all of the area, of aspect 3/4 to 4/3."""
    log_aspect = torch.log(torch.tensor((3 / 4, 4 / 3)))
    for _ in range(10):
        target = height * width * torch.empty(1).uniform_(0.08, 1.0).item()
        aspect = torch.exp(torch.empty(1).uniform_(log_aspect[0], log_aspect[1])).item()  # type: ignore[arg-type]
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, size=(1,)).item())
            left = int(torch.randint(0, width - w + 1, size=(1,)).item())
            return left, top, w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def _centre(image: Any, shorter: int, size: int) -> Any:
    """The central square of an image whose shorter side is scaled to ``shorter``."""
    from PIL import Image

    width, height = image.size
    scaled = (shorter, shorter * height // width) if width <= height else (shorter * width // height, shorter)
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))
