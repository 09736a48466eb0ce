"""IResNet against arcface_torch's: names, shapes, outputs; and what ours adds."""

import pytest
import torch
from torch import nn

from megaclass.models.iresnet import BLOCKS, IResNet
from unit.models import reference


def small(**options) -> IResNet:
    return IResNet((1, 2, 1, 1), **{"width": 8, "image_size": 32, "embedding_dim": 16, **options})


@pytest.mark.parametrize("depth", [18, 50, 100])
def test_names_and_shapes_are_those_of_arcface_torch(depth):
    with torch.device("meta"):
        ours = reference.shapes(IResNet(BLOCKS[depth]))
    assert list(ours.items()) == list(reference.load(f"iresnet{depth}")["shapes"].items())


def test_outputs_are_those_of_arcface_torch():
    fixture = reference.load("iresnet18")
    ours = torch.tensor(reference.answer(IResNet(BLOCKS[18]), fixture["image_size"]))
    torch.testing.assert_close(ours, torch.tensor(fixture["output"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", sorted(BLOCKS))
def test_depth_counts_the_convolutions_and_the_linear_layer(depth):
    layers = 2 * sum(BLOCKS[depth]) + 2
    assert layers == (198 if depth == 200 else depth)  # the published r200 has two fewer than its name


def test_initial_weights():
    torch.manual_seed(0)
    backbone = IResNet(BLOCKS[18])
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.1, rel=0.1)
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == ["features.weight"]
    assert torch.equal(backbone.features.weight, torch.ones(512))


@pytest.mark.parametrize("image_size", [28, 33, 64])
def test_image_size_sets_the_last_layer(image_size):
    backbone = small(image_size=image_size)
    images = torch.randn(2, 3, image_size, image_size)
    assert backbone(images).shape == (2, 16)
    assert (backbone.embedding_dim, backbone.image_size) == (16, image_size)


def test_checkpointed_activations_change_nothing():
    images = torch.randn(4, 3, 32, 32)
    results = []
    for checkpoint_activations in (False, True):
        torch.manual_seed(0)
        backbone = small(checkpoint_activations=checkpoint_activations, dropout=0.3)
        embeddings = backbone(images)
        embeddings.square().mean().backward()
        results.append((embeddings, [p.grad for p in backbone.parameters()], list(backbone.buffers())))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_bf16_autocast_in_channels_last_gives_fp32_embeddings_and_gradients():
    backbone = small().to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = backbone(images)
    assert embeddings.dtype == torch.float32
    embeddings.square().mean().backward()
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all(), name


def test_fp64_runs_in_fp64():
    assert small().double()(torch.randn(2, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64
