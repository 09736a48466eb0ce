"""A backbone that stands still for a while, and one whose layers have rates of their own."""

import shutil

import pytest
import torch

import tiny
from megaclass import checkpoint
from megaclass.models.registry import build_backbone
from megaclass.train import loop
from megaclass.train.optimizer import layers_of

LINEAR = {"kind": "linear"}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    tiny.run(folder, schedule={"steps": 2})
    return folder


@pytest.mark.parametrize(
    ("head", "optim", "compute"),
    [
        ({"sample_rate": 0.5}, {"ema_decay": 0.9}, "fp32"),
        ({}, {"layer_decay": 0.5}, "fp16"),  # the loss scaler has no gradient to look at
        (LINEAR, {"name": "adamw", "ema_decay": 0.9}, "fp32"),
        (LINEAR, {"name": "lars"}, "fp16"),
    ],
)
def test_a_frozen_backbone_moves_by_no_bit_and_then_does(start, tmp_path, head, optim, compute):
    sections = {
        "model": {"weights": str(start / "run")}, "head": head, "optim": optim | {"freeze_backbone_epochs": 2.0},
        "run": {"output": str(tmp_path / "run"), "checkpoint_every": 2, "keep_last": 9}, "schedule": {"steps": 8},
        "precision": {"compute": compute} | ({"init_scale": 64.0} if compute == "fp16" else {}),
    }  # fmt: skip
    began = tiny.job(start, **sections).backbone.state_dict()
    tiny.run(start, **sections)
    ends = [*map(checkpoint.load, checkpoint.directory.list_checkpoints(tmp_path / "run/checkpoints"))]
    for stored in ends[:2]:
        for state in filter(None, (stored.state, stored.state.get("ema"))):
            torch.testing.assert_close(state["backbone"], began, rtol=0, atol=0)
    moving = [stored.state["backbone"]["layers.0.weight"] for stored in ends[1:]]
    moving += [s.state["head"]["weight"] if head is LINEAR else s.rows("head/weight") for s in ends]
    assert not any(map(torch.equal, moving, moving[1:]))
    whole = ends[3].path.rename(tmp_path / "whole")  # with its bits it ends once more, from the frozen phase on
    for stored in ends[1:3]:
        shutil.rmtree(stored.path)
    tiny.run(start, resume=True, **sections)
    for file in whole.glob("*.safetensors"):
        assert file.read_bytes() == (ends[3].path / file.name).read_bytes()


def test_each_layer_has_its_rate(tmp_path):
    """decay ** (layers behind), as BEiT has it; the last layer, and a linear head, have the run's own."""
    job = tiny.job(tmp_path, head=LINEAR, optim={"layer_decay": 0.5, "lr": 0.4})
    rate = loop.set_learning_rate(job, 0)
    rates = {id(p): group["lr"] for group in job.optimizer.param_groups for p in group["params"]}
    found = [{rates[id(p)] for p in layer if p.requires_grad} for layer in layers_of(job.backbone)]
    assert found == [{rate * 0.5**behind} for behind in range(6, -1, -1)]
    assert {rates[id(p)] for p in job.head.parameters()} == {rate}
    counts = {"iresnet18": 10, "resnet50": 17, "mobilefacenet": 10, "vit_t": 15}
    with torch.device("meta"):
        assert {name: len(layers_of(build_backbone(name))) for name in counts} == counts
