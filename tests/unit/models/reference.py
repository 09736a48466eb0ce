"""Weights and images that any program can compute for itself, so that fixtures need hold only the answers.

The script that made the fixtures from the originals is in the history at b050932.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).with_name("fixtures")


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp64 numbers in [0, 1) from an integer hash of the name and each element's index: exact everywhere."""
    bits = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64) * 2654435761 + zlib.crc32(name.encode())
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        bits &= 0xFFFFFFFF
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return ((bits & 0xFFFFFFFF) / 2.0**32).reshape(shape)


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Of a parameter or buffer, by its name, at a scale that keeps activations near 1."""
    u = uniform(name, shape)
    if len(shape) > 1:
        return (2 * u - 1) * (3.0 / np.prod(shape[1:])) ** 0.5
    if name.endswith("weight"):
        return 0.5 + u / 2  # scales of norms, slopes of PReLU
    if name.endswith("running_var"):
        return 0.5 + u
    return np.array(7) if name.endswith("num_batches_tracked") else u - 0.5


def state_dict(fixture: dict) -> dict[str, Tensor]:
    """The same weights as the original would save them: its names, in its order."""
    made = {name: torch.from_numpy(values(name, tuple(shape))) for name, shape in fixture["shapes"].items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in made.items()}


def images(image_size: int) -> Tensor:
    """Two images, (2, 3, image_size, image_size), in [-1, 1)."""
    return torch.from_numpy(2 * uniform("images", (2, 3, image_size, image_size)) - 1).float()


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def columns(module: nn.Module, image_size: int) -> Tensor:
    """The first 64 columns of what the module makes of the images."""
    with torch.no_grad():
        return module(images(image_size))[:, :64]


def load(name: str) -> dict:
    return json.loads((FIXTURES / f"{name}.json").read_text())
