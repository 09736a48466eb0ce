"""Building by name, and loading foreign weights: all or nothing, with one clear line."""

import warnings

import pytest
import torch
from torch import nn

from megaclass.errors import UserError
from megaclass.models.norm import SynchronisedBatchNorm, average_norm_buffers, exact_norms
from megaclass.models.registry import BACKBONES, backbone_options, build_backbone, load_backbone_weights

SMALL = {"width": 8, "image_size": 32, "embedding_dim": 16}


def test_short_names_are_arcface_torchs():
    assert BACKBONES["r50"] is BACKBONES["iresnet50"]
    assert BACKBONES["mbf"] is BACKBONES["mobilefacenet"]


def test_an_unknown_name_is_answered_with_the_near_match():
    with pytest.raises(UserError, match=r"unknown backbone 'iresnet5' .*did you mean 'iresnet50'"):
        build_backbone("iresnet5")
    assert backbone_options("mbf") == ["embedding_dim", "image_size"]


def test_norm_sync_keeps_names_and_one_process_results():
    torch.manual_seed(0)
    plain = build_backbone("iresnet18", **SMALL)
    torch.manual_seed(0)
    synced = build_backbone("iresnet18", sync_norm=True, **SMALL)
    norms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, SynchronisedBatchNorm) for m in norms)
    assert [n for n, p in synced.named_parameters() if not p.requires_grad] == ["features.weight"]
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(synced(images), plain(images), rtol=0, atol=0)
    torch.testing.assert_close(synced.state_dict(), plain.state_dict(), rtol=0, atol=0)
    average_norm_buffers(synced)
    torch.testing.assert_close(synced.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_a_bare_norm_is_synchronised_in_place():
    norm = nn.BatchNorm1d(4)
    assert exact_norms(norm, over_ranks=True) is norm and isinstance(norm, nn.BatchNorm2d)


WRAPPINGS = {
    "bare": lambda weights: weights,
    "arcface_torch": lambda weights: {"epoch": 3, "state_dict_backbone": weights},
    "nested": lambda weights: {"state_dict": {"model": weights}},
    "ddp": lambda weights: {"module." + k: v for k, v in weights.items()},
    "compiled ddp": lambda weights: {"model": {"_orig_mod.module." + k: v for k, v in weights.items()}},
    "without counts": lambda weights: {k: v for k, v in weights.items() if "num_batches" not in k},
    "fp16": lambda weights: {k: v.half() if v.is_floating_point() else v for k, v in weights.items()},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_weights_load_however_they_are_wrapped(wrap):
    source, target = build_backbone("iresnet18", **SMALL), build_backbone("iresnet18", **SMALL)
    load_backbone_weights(target, wrap(source.state_dict()), "model.pt")
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=1e-3, atol=1e-3)


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def damaged(change) -> dict:
    weights = dict(build_backbone("iresnet18", **SMALL).state_dict())
    change(weights)
    return weights


BIAS = "fc.bias"
DAMAGED = {
    "missing": (damaged(lambda w: w.pop("conv1.weight")), r"1 missing \(conv1.weight\)"),
    "unexpected": (damaged(lambda w: w.update(head=torch.zeros(1))), r"1 unexpected \(head\)"),
    "shape": (damaged(lambda w: w.update({BIAS: torch.zeros(3)})), r"fc.bias \(3,\), the model has \(16,\)"),
    "other depth": (
        build_backbone("iresnet34", **SMALL).state_dict(),
        r"\d+ unexpected \(layer1.2.bn1.weight, .*\.\.\)",
    ),
    "sparse": (damaged(lambda w: w.update({BIAS: torch.zeros(16).to_sparse()})), r"1 not a dense .*fc\.bias"),
    "meta": (damaged(lambda w: w.update({BIAS: torch.zeros(16, device="meta")})), "1 not a dense"),
    "integer": (damaged(lambda w: w.update({BIAS: torch.zeros(16, dtype=torch.int8)})), "1 not a dense"),
    "complex": (damaged(lambda w: w.update({BIAS: torch.zeros(16, dtype=torch.cfloat)})), "1 not a dense"),
    "nested": (damaged(lambda w: w.update({BIAS: nested()})), "1 not a dense"),
    "nan": (damaged(lambda w: w[BIAS].fill_(torch.nan)), r"1 not finite \(fc\.bias\)"),
    "fp64": (
        damaged(lambda w: w.update({BIAS: torch.full((16,), 1e300, dtype=torch.double)})),
        "1 not finite",
    ),
    "key": (damaged(lambda w: w.update({3: torch.zeros(1)})), "holds no state dict"),
    "no tensors": (
        {"net_state_dict": {}, "epoch": 3},
        "holds no state dict.*; its keys are epoch, net_state_dict; save",
    ),
    "no dict": (None, "holds no state dict"),
    "empty": ({}, r"\d+ missing \(conv1.weight, "),
}


@pytest.mark.parametrize(("weights", "message"), DAMAGED.values(), ids=DAMAGED)
def test_weights_of_another_model_load_nothing(weights, message):
    backbone = build_backbone("iresnet18", **SMALL)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_backbone_weights(backbone, weights, "model.pt")
    assert str(caught.value).startswith("model.pt: ")
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)
