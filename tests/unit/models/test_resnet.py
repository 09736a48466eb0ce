"""ResNet against torchvision's: names, shapes, outputs; stems, initial weights, the parted state dict."""

import pytest
import torch

from megaclass.errors import UserError
from megaclass.models.registry import build_backbone
from megaclass.models.resnet import BasicBlock, Bottleneck, ResNet, split_state_dict
from unit.models import reference


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_names_and_shapes_are_those_of_torchvision(name):
    with torch.device("meta"):
        ours = reference.shapes(build_backbone(name))
    assert list(ours.items()) == list(reference.load(name)["shapes"].items())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_outputs_are_those_of_torchvision(name):
    fixture = reference.load(name)
    ours = torch.tensor(reference.answer(build_backbone(name), fixture["image_size"]))
    torch.testing.assert_close(ours, torch.tensor(fixture["output"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11.18), (34, 21.28), (50, 23.51), (101, 42.50), (152, 58.14)]
)
def test_parameter_counts_without_the_classifier(depth, parameters):
    with torch.device("meta"):
        backbone = build_backbone(f"resnet{depth}")
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(parameters, abs=0.006)
    assert backbone.embedding_dim == (2048 if depth >= 50 else 512)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_blocks_start_as_their_shortcut(block):
    one = block(block.expansion * 8, 8, stride=1)
    torch.nn.init.zeros_(one.last_norm.weight)
    x = torch.rand(2, block.expansion * 8, 4, 4)
    assert torch.equal(one(x), x)

    def last_scales(**options):
        return [
            m.last_norm.weight.sum().item()
            for m in ResNet(block, (1, 1, 1, 1), width=8, **options).modules()
            if isinstance(m, block)
        ]

    assert last_scales() == [0.0] * 4
    assert 0.0 not in last_scales(zero_init_residual=False)


def test_small_stem_keeps_the_resolution():
    seen = []
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), width=8, stem="small", image_size=32)
    backbone.layer1.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, 64)
    assert seen == [(2, 8, 32, 32)]
    with pytest.raises(UserError, match="stem: 'tiny'"):
        ResNet(BasicBlock, (1, 1, 1, 1), stem="tiny")


def test_state_dict_parts():
    backbone, head = split_state_dict({"conv1.weight": 1, "fc.weight": 2, "fc.bias": 3})
    assert (backbone, head) == ({"conv1.weight": 1}, {"fc.weight": 2, "fc.bias": 3})


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_bf16_autocast_in_channels_last_gives_fp32_features_and_gradients(checkpoint_activations):
    backbone = ResNet(Bottleneck, (1, 1, 1, 1), width=8, checkpoint_activations=checkpoint_activations)
    backbone = backbone.to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(images)
    assert features.dtype == torch.float32
    features.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())
