"""MobileFaceNet against arcface_torch's: names, shapes, outputs; image sizes, precision."""

import pytest
import torch

from megaclass.models.mobilefacenet import MobileFaceNet
from megaclass.models.registry import build_backbone
from unit.models import reference


@pytest.mark.parametrize("name", ["mobilefacenet", "mobilefacenet_large"])
def test_names_and_shapes_are_those_of_arcface_torch(name):
    with torch.device("meta"):
        ours = reference.shapes(build_backbone(name))
    assert list(ours.items()) == list(reference.load(name)["shapes"].items())


@pytest.mark.parametrize("name", ["mobilefacenet", "mobilefacenet_large"])
def test_outputs_are_those_of_arcface_torch(name):
    fixture = reference.load(name)
    ours = torch.tensor(reference.answer(build_backbone(name), fixture["image_size"]))
    torch.testing.assert_close(ours, torch.tensor(fixture["output"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("image_size", [48, 65])
def test_image_size_sets_the_last_depth_wise_filter(image_size):
    backbone = MobileFaceNet((1, 1, 1, 1), 1, embedding_dim=16, image_size=image_size)
    assert backbone(torch.randn(2, 3, image_size, image_size)).shape == (2, 16)


def test_bf16_autocast_in_channels_last_gives_fp32_embeddings_and_gradients():
    backbone = MobileFaceNet((1, 1, 1, 1), 1, image_size=32).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = backbone(images)
    assert embeddings.dtype == torch.float32
    embeddings.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())
