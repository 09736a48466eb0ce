"""Fifty steps of a recipe of each kind on a few small images, with a shallow network: the loss falls."""

from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from megaclass.config import from_mapping, load_recipe
from megaclass.models import registry
from megaclass.models.iresnet import IResNet
from megaclass.models.resnet import BasicBlock, Bottleneck, ResNet
from megaclass.models.vit import VisionTransformer
from megaclass.parallel.groups import World
from megaclass.train import loop
from megaclass.train.average import WeightAverage
from megaclass.train.guard import Guard
from megaclass.train.job import build_job

pytestmark = pytest.mark.long

WORLD = World(0, 1, torch.device("cpu"))
CLASSES, SIDE, BATCH, STEPS = 8, 16, 32, 50
# recipe: its backbone with fewer blocks, what the last losses are below as a share of the first, what else changes
RECIPES = {
    "resnet50_imagenet_250ep": (partial(ResNet, Bottleneck, (1, 1, 1, 1)), 0.6, {}),
    "resnet_rsb_a1_r50": (partial(ResNet, Bottleneck, (1, 1, 1, 1)), 0.95, {}),
    "resnet_rsb_a2_r18": (partial(ResNet, BasicBlock, (1, 1, 1, 1)), 0.95, {}),
    "resnet_rsb_a3_r50": (partial(ResNet, Bottleneck, (1, 1, 1, 1)), 0.9, {}),
    "resnet_v2_r50": (partial(ResNet, Bottleneck, (1, 1, 1, 1)), 0.9, {}),
    "resnet_fast_r18_16ep": (partial(ResNet, BasicBlock, (1, 1, 1, 1)), 0.4, {"data": {"start_size": 8}}),
    "resnet_fast_r50_16ep": (partial(ResNet, Bottleneck, (1, 1, 1, 1)), 0.4, {"data": {"start_size": 8}}),
    "ms1mv3_r50_onegpu": (partial(IResNet, (1, 1, 1, 1)), 0.2, {}),
    "webface12m_flip_pfc01_filter04_r50": (partial(IResNet, (1, 1, 1, 1)), 0.2, {}),
    "synthetic_618k": (partial(IResNet, (1, 1, 1, 1)), 0.9, {}),  # noise can be learnt by heart only
    "webface42m_pfc03_vit_t": (
        partial(VisionTransformer, 32, 3),
        0.2,
        {"optim": {"lr_batch_size": BATCH}, "data": {"image_size": 36}},
    ),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """128 small images, a colour for each class, under noise: four batches are an epoch."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir()
        colour = random.integers(20, 200, 3)
        for number in range(16):
            image = (colour + random.integers(0, 56, (SIDE, SIDE, 3))).astype(np.uint8)
            cv2.imwrite(str(folder / f"class{label}" / f"{number}.jpg"), image)
    return folder


def small_config(recipe: str, folder: Path, changes: dict):
    config = load_recipe(recipe)
    noise = {"num_samples": 4 * BATCH}
    data = noise if config.data.source == "synthetic" else {"source": "folder", "path": str(folder)}
    data |= {"image_size": SIDE, "global_batch_size": BATCH, "num_classes": CLASSES, "workers": 1}
    tree = {
        "run": {"device": "cpu", "threads": 1},
        "data": data | changes.get("data", {}),
        "model": {} if config.model.name == "vit_t" else {"width": 8},
        "optim": changes.get("optim", {}),
        "precision": {"compute": "fp32"},
        "evaluate": {"task": "none"},
    }
    return from_mapping(tree, config)


@pytest.mark.parametrize("name", RECIPES)
def test_fifty_steps_of_a_recipe(name, photographs, monkeypatch):
    backbone, share, changes = RECIPES[name]
    monkeypatch.setitem(registry.BACKBONES, load_recipe(name).model.name, backbone)
    job = build_job(small_config(name, photographs, changes), WORLD)
    guard, losses, averaged = Guard(job), [], []
    monkeypatch.setattr(WeightAverage, "update", lambda _, number: averaged.append((len(losses), number)))
    job.model.train()
    for step, batch in enumerate(islice(job.feed(job.loader.steps(0, job.total_steps)), STEPS)):
        loop.set_learning_rate(job, step)
        losses.append(float(loop.train_step(job, batch, step, guard).loss))
    assert len(losses) == STEPS and np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < share * np.mean(losses[:5])
    # What the recipe says reaches the parts.
    theirs = load_recipe(name)
    every = theirs.optim.ema_every
    number = STEPS // every if theirs.optim.ema_decay else 0
    assert averaged == [(every * (count + 1) - 1, count) for count in range(number)]
    assert job.total_steps == (6400 if theirs.data.source == "synthetic" else 4 * theirs.schedule.epochs)
    assert job.optimizer.param_groups[0]["weight_decay"] == theirs.optim.weight_decay
    if job.head_optimizer:
        assert job.head_optimizer.param_groups[0]["weight_decay"] == theirs.optim.weight_decay
        for setting in ("m2", "m3", "filter_threshold"):
            assert getattr(job.head.margin, setting) == getattr(theirs.head, setting)
