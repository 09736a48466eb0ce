"""Weights and images that any program can compute for itself, so that fixtures need hold only the answers.

Run as a script it makes the fixtures from the originals, in an environment that has them:
``python reference.py FOLDER``, where FOLDER is InsightFace's recognition/arcface_torch/backbones and
torchvision and timm can be imported.
"""

import json
import sys
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


def fill(module: nn.Module) -> nn.Module:
    """Set every parameter and buffer by its name; eval mode."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape))))
    return module.eval()


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


def _main(backbones: str) -> None:
    sys.path.insert(0, backbones)
    import iresnet
    import mobilefacenet
    import timm
    import vit
    from torchvision.models import resnet

    def features(network: nn.Module) -> nn.Module:
        network.fc = nn.Identity()
        return network

    def transformer(width: int, depth: int) -> nn.Module:
        return vit.VisionTransformer(
            img_size=112, patch_size=9, num_classes=512, embed_dim=width, depth=depth, num_heads=8
        )

    made = {
        "iresnet18": (iresnet.iresnet18(), 112),
        "iresnet50": (iresnet.iresnet50(), 112),
        "iresnet100": (iresnet.iresnet100(), 112),
        "mobilefacenet": (mobilefacenet.get_mbf(False, 512), 112),
        "mobilefacenet_large": (mobilefacenet.get_mbf_large(False, 512), 112),
        "resnet18": (features(resnet.resnet18()), 96),
        "resnet50": (features(resnet.resnet50()), 96),
        "resnet18d": (timm.create_model("resnet18d", num_classes=0), 96),
        "resnet50d": (timm.create_model("resnet50d", num_classes=0), 97),
        "vit_t": (transformer(256, 12), 112),
        "vit_b": (transformer(512, 24), 112),
    }
    for name, (network, image_size) in made.items():
        fixture = {
            "image_size": image_size,
            "output": columns(fill(network), image_size).tolist(),
            "shapes": shapes(network),
        }
        (FIXTURES / f"{name}.json").write_text(json.dumps(fixture, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
