"""State dicts as arcface_torch and torchvision save them, through the loader: the originals' outputs come out."""

import pytest
import torch

from megaclass.models.registry import build_backbone, load_backbone_weights
from unit.models import reference

pytestmark = pytest.mark.long

# As arcface_torch saves a whole run, DistributedDataParallel and all, or the backbone alone.
RUN = {"epoch": 3, "global_step": 7}


@pytest.mark.parametrize("name", ["iresnet18", "iresnet50"])
def test_weights_of_arcface_torch_give_its_outputs(name):
    fixture = reference.load(name)
    backbone = build_backbone(name, image_size=fixture["image_size"])
    weights = reference.state_dict(fixture)
    wrapped = {f"module.{key}": tensor for key, tensor in weights.items()}
    load_backbone_weights(backbone, RUN | {"state_dict_backbone": wrapped}, "checkpoint_gpu_0.pt")
    _agree(backbone, fixture)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_weights_of_torchvision_give_its_features(name):
    fixture = reference.load(name)
    backbone = build_backbone(name)
    classifier = {"fc.weight": torch.zeros(1000, backbone.embedding_dim), "fc.bias": torch.zeros(1000)}
    load_backbone_weights(backbone, reference.state_dict(fixture) | classifier, f"{name}.pth")
    _agree(backbone, fixture)


def _agree(backbone, fixture):
    """To 1e-5 of the largest number: what rounding leaves of fp32 after some fifty layers."""
    theirs = torch.tensor(fixture["output"])
    ours = reference.columns(backbone.eval(), fixture["image_size"])
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
