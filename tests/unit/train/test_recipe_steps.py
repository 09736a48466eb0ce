"""Fifty steps of each kind of recipe on a few small images: the learning rate of every step, and a loss that falls."""

import math
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
from megaclass.models.resnet import Bottleneck, ResNet
from megaclass.models.vit import VisionTransformer
from megaclass.parallel.groups import World
from megaclass.train import loop
from megaclass.train.job import build_job

pytestmark = pytest.mark.long

WORLD = World(0, 1, torch.device("cpu"))
IMAGENET = {"resnet50_imagenet": 90, "resnet50_imagenet_50ep": 50, "resnet50_imagenet_250ep": 250}
CLASSES, SIDE, BATCH, STEPS = 8, 16, 32, 50


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


def small_job(recipe: str, folder: Path, **sections):
    config = load_recipe(recipe)
    tree = {
        "run": {"device": "cpu", "threads": 1},
        "data": {"image_size": SIDE, "global_batch_size": BATCH, "num_classes": CLASSES, "workers": 1},
        "precision": {"compute": "fp32"},
        "speed": {"keep_memory": False},
        "evaluate": {"task": "none"},
    }
    if config.data.source == "synthetic":
        tree["data"] |= {"num_samples": 4 * BATCH}
    else:
        tree["data"] |= {"source": "folder", "path": str(folder)}
    if config.model.name != "vit_t":
        tree["model"] = {"width": 8}
    for section, values in sections.items():
        tree.setdefault(section, {}).update(values)
    return build_job(from_mapping(tree, config), WORLD)


def fifty_steps(job) -> tuple[list[float], list[float]]:
    """(losses, learning rates), step for step as ``fit`` does them."""
    norms, found, rates = loop.NormBuffers(job.backbone), [], []
    job.model.train()
    for step, batch in enumerate(islice(job.feed(job.loader.steps(0, job.total_steps)), STEPS)):
        rates.append(loop.set_learning_rate(job, step))
        assert {group["lr"] for group in job.optimizer.param_groups} == {rates[-1]}
        found.append(float(loop.train_step(job, batch, step, norms).loss))
    assert len(found) == STEPS and np.isfinite(found).all()
    return found, rates


def falls(losses: list[float], to: float) -> bool:
    return np.mean(losses[-10:]) < to * np.mean(losses[:5])


@pytest.mark.parametrize("name", IMAGENET)
def test_fifty_steps_of_an_imagenet_recipe(name, photographs, monkeypatch):
    """Four steps an epoch: 20 of warm-up at 0.256 * 32 / 256, then the cosine."""
    monkeypatch.setitem(registry.BACKBONES, "resnet50", partial(ResNet, Bottleneck, (1, 1, 1, 1)))
    job = small_job(name, photographs)
    losses, rates = fifty_steps(job)
    total = 4 * IMAGENET[name]
    expected = [0.032 * (step + 1) / 20 for step in range(20)]
    expected += [0.016 * (1 + math.cos(math.pi * (step - 20) / (total - 20))) for step in range(20, STEPS)]
    assert rates == pytest.approx(expected) and job.total_steps == total
    assert falls(losses, 0.6)


FAMILIES = {
    "ms1mv2_r100": (0.1, 80, 0),
    "ms1mv3_r50_onegpu": (0.16, 80, 0),
    "glint360k_r50": (0.1, 80, 0),
    "webface4m_r50": (0.1, 80, 0),
    "webface12m_flip_pfc01_filter04_r50": (0.1, 80, 8),
    "webface42m_pfc03_r200": (0.1, 80, 8),
    "synthetic_618k": (3.2, 6400, 0),  # for any batch
}


@pytest.mark.parametrize("name", FAMILIES)
def test_fifty_steps_of_a_face_recipe(name, photographs, monkeypatch):
    """The rate for 1,024 images scales to 32; the images are few and the network is shallow, the rest is the recipe."""
    base, total, warmup = FAMILIES[name]
    monkeypatch.setitem(registry.BACKBONES, load_recipe(name).model.name, partial(IResNet, (1, 1, 1, 1)))
    job = small_job(name, photographs)
    losses, rates = fifty_steps(job)
    base *= BATCH / 1024
    expected = [base * (step + 1) / warmup for step in range(warmup)]
    expected += [base * (total - step) / (total - warmup) for step in range(warmup, STEPS)]
    assert rates == pytest.approx(expected) and job.total_steps == total
    theirs, margin = load_recipe(name), job.head.margin
    assert (margin.m2, margin.m3, margin.filter_threshold) == (
        theirs.head.m2, theirs.head.m3, theirs.head.filter_threshold)  # fmt: skip
    (group,) = job.head_optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (
        rates[-1],
        0.9,
        theirs.optim.weight_decay,
    )
    assert falls(losses, 0.9 if name == "synthetic_618k" else 0.2)  # noise can be learnt by heart only


def test_fifty_steps_of_a_transformer(photographs, monkeypatch):
    monkeypatch.setitem(registry.BACKBONES, "vit_t", partial(VisionTransformer, 32, 3))
    job = small_job(
        "webface42m_pfc03_vit_t", photographs, optim={"lr_batch_size": BATCH}, data={"image_size": 36}
    )
    losses, rates = fifty_steps(job)
    assert rates[15:17] == pytest.approx([1e-3, 1e-3]) and job.total_steps == 160
    assert isinstance(job.optimizer, torch.optim.AdamW)
    assert job.optimizer.param_groups[0]["weight_decay"] == 0.1 and len(job.optimizer.param_groups) == 1
    assert job.head_optimizer.param_groups[0]["lr"] == pytest.approx(12 * rates[-1])
    assert falls(losses, 0.2)
