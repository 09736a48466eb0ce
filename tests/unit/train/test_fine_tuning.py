"""A backbone that stands still for a while, and one whose layers have rates of their own."""

import shutil

import pytest
import torch

import tiny
from megaclass import checkpoint
from megaclass.models.registry import build_backbone
from megaclass.parallel.groups import World
from megaclass.train import loop
from megaclass.train.guard import Guard
from megaclass.train.job import build_job
from megaclass.train.optimizer import layers_of, parameter_groups

WORLD = World(0, 1, torch.device("cpu"))
FREEZE = {"freeze_backbone_epochs": 2.0}  # 4 steps of 12 images each
LINEAR = {"kind": "linear"}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    loop.run(tiny.config(folder, schedule={"steps": 2}), WORLD)
    return folder


@pytest.mark.parametrize(
    ("head", "optim", "precision"),
    [
        ({"sample_rate": 0.5}, {"ema_decay": 0.9}, {}),
        (
            {},
            {"layer_decay": 0.5},
            {"compute": "fp16", "init_scale": 64.0},
        ),  # the loss scaler has no gradient to look at
        (LINEAR, {"name": "adamw", "ema_decay": 0.9}, {}),
        (LINEAR, {"name": "lars"}, {"compute": "fp16", "init_scale": 64.0}),
    ],
)
def test_a_frozen_backbone_moves_by_no_bit_and_then_does(start, tmp_path, head, optim, precision):
    sections = {
        "run": {"output": str(tmp_path / "run"), "checkpoint_every": 2, "keep_last": 9},
        "model": {"weights": str(start / "run")},
        "head": head,
        "optim": FREEZE | optim,
        "precision": precision,
        "schedule": {"steps": 8},
    }
    config = tiny.config(start, **sections)
    first = build_job(config, WORLD)
    loop.run(config, WORLD)
    root = tmp_path / "run/checkpoints"
    ends = {
        int(path.name[-8:]): checkpoint.load(path) for path in checkpoint.directory.list_checkpoints(root)
    }
    for step in (2, 4):
        states = [ends[step].state, ends[step].state.get("ema", {})]
        for backbone in (state["backbone"] for state in states if state):
            torch.testing.assert_close(backbone, first.backbone.state_dict(), rtol=0, atol=0)
    weights = [ends[step].state["backbone"]["layers.0.weight"] for step in (4, 6, 8)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    centres = [
        ends[step].state["head"]["weight"] if head is LINEAR else ends[step].rows("head/weight", 0, 6)
        for step in (2, 4)
    ]
    assert not torch.equal(centres[0], centres[1])
    # Continued from the frozen phase, the run ends with the same bits.
    whole = ends[8].path.rename(tmp_path / "whole")
    for step in (4, 6):
        shutil.rmtree(ends[step].path)
    loop.run(config, WORLD, resume=True)
    for file in whole.glob("*.safetensors"):
        assert file.read_bytes() == (ends[8].path / file.name).read_bytes()


@pytest.mark.parametrize("head", [{}, LINEAR])
def test_nothing_is_computed_backwards_while_the_backbone_is_frozen(start, head):
    config = tiny.config(start, model={"weights": str(start / "run")}, head=head, optim=FREEZE)
    job = build_job(config, WORLD)
    seen = []
    job.backbone.register_forward_hook(
        lambda module, _, given: seen.append((module.training, given.requires_grad))
    )
    guard = Guard(job)
    for step, batch in enumerate(job.loader.steps(0, 6)):
        loop.train_step(job, batch, step, guard)
    assert seen == [(False, False)] * 4 + [(True, True)] * 2


@pytest.mark.parametrize(
    ("name", "count"),
    [("convnet", 7), ("iresnet18", 10), ("resnet50", 17), ("mobilefacenet", 10), ("vit_t", 15)],
)
def test_the_layers_of_a_backbone_are_its_blocks(name, count):
    with torch.device("meta"):
        backbone = build_backbone(name)
    layers = layers_of(backbone)
    assert len(layers) == count and all(layers)
    assert {id(p) for layer in layers for p in layer} == {id(p) for p in backbone.parameters()}


def test_each_layer_has_its_rate(tmp_path):
    """decay ** (layers behind), as BEiT has it; the last layer, and a linear head, have the run's own."""
    config = tiny.config(tmp_path, head=LINEAR, optim={"layer_decay": 0.5, "lr": 0.4})
    job = build_job(config, WORLD)
    rate = loop.set_learning_rate(job, 0)
    rates = {id(p): group["lr"] for group in job.optimizer.param_groups for p in group["params"]}
    found = [{rates[id(p)] for p in layer if p.requires_grad} for layer in layers_of(job.backbone)]
    assert found == [{rate * 0.5**behind} for behind in range(6, -1, -1)]
    assert {rates[id(p)] for p in job.head.parameters()} == {rate}
    decays = {
        id(p): g["weight_decay"]
        for g in parameter_groups([job.backbone], 0.1, False, True)
        for p in g["params"]
    }
    assert all(
        decays[id(p)] == (0.1 if p.ndim > 1 else 0) for p in job.backbone.parameters() if p.requires_grad
    )
