"""Backbones against those of arcface_torch, torchvision and timm: names, shapes, and the outputs of their weights."""

import pytest
import torch

from megaclass.models.registry import build_backbone, load_backbone_weights
from unit.models import reference

NAMES = sorted(path.stem for path in reference.FIXTURES.glob("*.json"))


def ours(name: str, **options):
    """The backbone of that name; ResNet-D, which is a ResNet with options here."""
    resnet_d = {"stem": "deep", "shortcut": "pool"} if name.endswith("d") else {}
    return build_backbone(name.removesuffix("d"), **resnet_d, **options)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes(name):
    with torch.device("meta"):
        found = reference.shapes(ours(name))
    assert found == reference.load(name)["shapes"]


@pytest.mark.parametrize(
    "name",
    [n if "18" in n else pytest.param(n, marks=pytest.mark.long) for n in NAMES if n not in ("iresnet100", "vit_b")],
)
def test_their_weights_give_their_outputs(name):
    """To 1e-5 of the largest number: what rounding leaves of fp32 after some fifty layers."""
    fixture = reference.load(name)
    weights = reference.state_dict(fixture)
    backbone = ours(name, image_size=fixture["image_size"])
    if name.startswith("resnet"):  # as torchvision and timm save them, with the classifier
        saved = weights | {
            "fc.weight": torch.zeros(1000, backbone.embedding_dim),
            "fc.bias": torch.zeros(1000),
        }
    else:  # as arcface_torch saves a whole run, DistributedDataParallel and all
        wrapped = {f"module.{key}": tensor for key, tensor in weights.items()}
        saved = {"epoch": 3, "global_step": 7, "state_dict_backbone": wrapped}
    load_backbone_weights(backbone, saved, "checkpoint_gpu_0.pt")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in backbone.state_dict().items())
    theirs = torch.tensor(fixture["output"])
    found = reference.columns(backbone.eval(), fixture["image_size"])
    assert (found - theirs).abs().max() <= 1e-5 * theirs.abs().max()
