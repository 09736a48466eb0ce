"""The embedded recipes against what their originals say, as a run resolves them, and what is said of them."""

import math
import os
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from megaclass.bench.peers.arcface_torch import locate
from megaclass.config import from_mapping, load_recipe, recipe_names, scaled_lr, steps_of, values
from megaclass.heads.linear import LinearHead
from megaclass.models import registry
from megaclass.train import schedule
from megaclass.train.optimizer import parameter_groups

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "recipes.md"


def learning_rate(config, epoch: float, samples: int) -> float:
    """Of the step that begins after so many epochs, as the loop sets it."""
    plan, steps = config.schedule, steps_of(config, samples)
    step = round(epoch * samples / config.data.global_batch_size)
    return steps.base_lr * schedule.factor(plan, step, steps.total, steps.warmup)


def at_batch(config, size: int):
    return from_mapping({"data": {"global_batch_size": size}}, config)


# -- ResNet-50 on ImageNet, as NVIDIA's DeepLearningExamples publish it ---------------------------------

IMAGENET = 1_281_167
NVIDIA = {"resnet50_imagenet": (90, 0.0), "resnet50_imagenet_50ep": (50, 0.0), "resnet50_imagenet_90ep": (90, 0.0),
          "resnet50_imagenet_250ep": (250, 0.2)}  # fmt: skip
every_imagenet_recipe = pytest.mark.parametrize("name", NVIDIA)


@every_imagenet_recipe
@pytest.mark.parametrize("batch", [1024, 1536, 4096])
def test_the_learning_rate_is_nvidias(name, batch):
    """0.256 for 256 images, linear in the batch; five epochs of warm-up, then half a cosine to 0."""
    config, epochs = at_batch(load_recipe(name), batch), NVIDIA[name][0]
    base = 0.256 * batch / 256
    assert steps_of(config, IMAGENET).total == round(epochs * IMAGENET / batch)
    assert scaled_lr(config) == pytest.approx(base)
    half = 5 + (epochs - 5) / 2
    third = 5 + (epochs - 5) / 3
    expected = {1: base / 5, 2.5: base / 2, 5: base, third: 0.75 * base, half: base / 2}
    for epoch, rate in expected.items():
        assert learning_rate(config, epoch, IMAGENET) == pytest.approx(rate, rel=5e-3), epoch
    assert 0 < learning_rate(config, epochs - 1, IMAGENET) < 2e-3 * base * (50 / epochs) ** 2


@every_imagenet_recipe
def test_the_rest_of_nvidias_recipe(name):
    config = load_recipe(name)
    assert (config.model.name, config.head.kind, config.head.label_smoothing) == ("resnet50", "linear", 0.1)
    assert (config.optim.name, config.optim.momentum, config.optim.clip_grad_norm) == ("sgd", 0.875, 0.0)
    augment = config.augment
    assert (augment.mixup, augment.flip, augment.crop_scale_min) == (NVIDIA[name][1], True, 0.08)
    assert (config.data.image_size, config.evaluate.resize, config.evaluate.image_size) == (224, 256, 0)


def test_weight_decay_is_nvidias_and_spares_norms_and_biases():
    optim = load_recipe("resnet50_imagenet").optim
    with torch.device("meta"):
        backbone, head = registry.build_backbone("resnet50"), LinearHead(1000, 2048, 0.1)
    decayed, others = parameter_groups([backbone, head], optim.weight_decay, optim.decay_norms)
    assert (decayed["weight_decay"], others["weight_decay"]) == (1 / 32768, 0.0)
    norms = [p for m in backbone.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters(recurse=False)]
    assert len(decayed["params"]) == 53 + 1 and all(p.ndim in (2, 4) for p in decayed["params"])
    assert len(others["params"]) == len(norms) + 1 == 2 * 53 + 1  # and the bias of the head
    assert {id(p) for p in norms} < {id(p) for p in others["params"]}


# -- residual networks on ImageNet: "ResNet strikes back", torchvision's V2, ffcv's ladder ----------------

ALL = {"head.kind": "linear", "optim.momentum": 0.9, "optim.decay_norms": False, "augment.flip": True,
       "augment.crop_scale_min": 0.08, "data.normalise": "imagenet"}  # fmt: skip
# Wightman et al. 2021, arXiv:2110.00476, table 2, for A1, A2, A3. Not in it, of timm as it was then: a target above 0.2
# counts as 1, LAMB clips at a norm of 1, the moments' 0.9, inc1; the learning rate begins at 1e-4 and ends at 1e-6.
RSB = {
    "data.image_size": (224, 224, 160), "evaluate.image_size": (0, 0, 224), "schedule.epochs": (600, 300, 100),
    "data.global_batch_size": (2048,) * 3, "optim.name": ("lamb",) * 3, "optim.lr": (5e-3, 5e-3, 8e-3),
    "schedule.kind": ("cosine",) * 3, "optim.weight_decay": (0.01, 0.02, 0.02), "schedule.warmup_epochs": (5,) * 3,
    "head.label_smoothing": (0.1, 0.0, 0.0), "model.dropout": (0,) * 3, "model.drop_path": (0.05, 0.05, 0),
    "augment.repeats": (3, 3, 1), "augment.policy_magnitude": (7, 7, 6), "augment.policy_std": (0.5,) * 3,
    "augment.mixup": (0.2, 0.1, 0.1), "augment.cutmix": (1,) * 3, "augment.erase_probability": (0,) * 3,
    "augment.colour_probability": (0,) * 3,
    "optim.ema_decay": (0,) * 3, "evaluate.resize": (int(224 / 0.95),) * 3, "head.loss": ("bce",) * 3,
    "head.bce_threshold": (0.2,) * 3, "augment.policy": ("timm",) * 3, "optim.clip_grad_norm": (1.0,) * 3,
    "schedule.decay_in_warmup": (True,) * 3,
}  # fmt: skip
# pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives, its command at the end.
V2 = {
    "data.global_batch_size": 8 * 128, "schedule.epochs": 600, "optim.name": "sgd", "optim.lr": 0.5,
    "schedule.kind": "cosine", "schedule.warmup_epochs": 5, "schedule.warmup_from": 0.01, "optim.weight_decay": 2e-5,
    "head.label_smoothing": 0.1, "augment.mixup": 0.2, "augment.cutmix": 1, "augment.policy": "trivialaugment",
    "augment.repeats": 4, "augment.erase_probability": 0.1, "optim.ema_every": 32, "evaluate.resize": 232,
    "evaluate.image_size": 224, "data.image_size": 176,
    "head.loss": "softmax", "optim.clip_grad_norm": 0, "schedule.final_factor": 0,
}  # fmt: skip
# github.com/libffcv/ffcv-imagenet, rn50_configs and rn18_configs; batch_size is of each of 8 processes, and of one.
FFCV = {
    "data.image_size": 192, "data.start_size": 160, "schedule.kind": "polynomial", "schedule.power": 1.0,
    "head.label_smoothing": 0.1, "optim.name": "sgd", "evaluate.flip": True, "evaluate.image_size": 256,
    "evaluate.resize": round(256 / (224 / 256)), "augment.mixup": 0, "augment.cutmix": 0, "augment.policy": "none",
    "optim.clip_grad_norm": 0, "schedule.warmup_epochs": 2, "schedule.warmup_from": 1e-4, "head.loss": "softmax",
}  # fmt: skip
FFCV_OF = {18: {"data.global_batch_size": 1024, "optim.lr": 0.5, "optim.weight_decay": 5e-5},
           50: {"data.global_batch_size": 8 * 512, "optim.lr": 1.7, "optim.weight_decay": 1e-4}}  # fmt: skip
FFCV_RAMPS = {16: (11, 13), 32: (23, 27), 88: (65, 76)}
RESIDUAL = {
    **{f"resnet_rsb_a{number}_r{depth}": {key: of[number - 1] for key, of in RSB.items()}
       for number in (1, 2, 3) for depth in (18, 34, 50, 101, 152)},
    **{f"resnet_v2_r{depth}": V2 for depth in (50, 101, 152)},
    **{f"resnet_fast_r{depth}_{epochs}ep": FFCV | FFCV_OF[depth] | {"schedule.epochs": epochs}
       for depth in (18, 50) for epochs in FFCV_RAMPS},
}  # fmt: skip


def timms_rate(epoch: int, epochs: int, lr: float) -> float:
    """CosineLRScheduler with warmup_t 5, warmup_lr_init 1e-4, lr_min 1e-6, warmup_prefix false."""
    if epoch < 5:
        return 1e-4 + epoch * (lr - 1e-4) / 5
    return 1e-6 + 0.5 * (lr - 1e-6) * (1 + math.cos(math.pi * epoch / epochs))


def torchvisions_rate(epoch: int, epochs: int, lr: float) -> float:
    """LinearLR from 0.01 over 5 epochs, then CosineAnnealingLR over the others."""
    if epoch < 5:
        return lr * (0.01 + 0.99 * epoch / 5)
    return 0.5 * lr * (1 + math.cos(math.pi * (epoch - 5) / (epochs - 5)))


def ffcvs_rate(epoch: int, epochs: int, lr: float) -> float:
    return float(np.interp(epoch, [0, 2, epochs], [1e-4 * lr, lr, 0]))


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_residual_networks_recipe_is_what_its_source_says(name):
    config, source = load_recipe(name), ALL | RESIDUAL[name]
    found = values(config)
    assert {key: found[key] for key in source} == source
    assert config.model.name == f"resnet{re.search(r'_r([0-9]+)', name)[1]}"
    assert (config.model.width, config.model.stem, config.model.shortcut) == (64, "imagenet", "stride")
    assert config.optim.lr_batch_size == source["data.global_batch_size"]  # another batch scales the rate
    rate = {"rsb": timms_rate, "v2": torchvisions_rate, "fast": ffcvs_rate}[name.split("_")[1]]
    epochs, lr = int(source["schedule.epochs"]), source["optim.lr"]
    for epoch in range(epochs):
        expected = rate(epoch, epochs, lr)
        assert learning_rate(config, epoch, IMAGENET) == pytest.approx(expected, abs=2e-3 * lr), epoch


def test_torchvisions_average_of_the_weights():
    """Its references/classification/train.py adjusts the 0.99998 to 32 steps of a batch."""
    adjust = 8 * 128 * 32 / 600
    decay = 1 - min(1.0, (1 - 0.99998) * adjust)
    assert load_recipe("resnet_v2").optim.ema_decay == pytest.approx(decay, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in RESIDUAL if "fast" in name])
def test_images_grow_as_ffcvs(name):
    config = load_recipe(name)
    total, (start, end) = int(config.schedule.epochs), FFCV_RAMPS[int(config.schedule.epochs)]
    for epoch in range(total):
        theirs = int(np.round(np.interp(epoch, [start, end], [160, 192]) / 32)) * 32
        assert schedule.image_size(config.data, 100 * epoch + 1, 100 * total) == theirs, epoch


# -- faces, as arcface_torch's configs/*.py have them ---------------------------------------------------

ARCFACE, COSFACE = (1.0, 0.5, 0.0), (1.0, 0.0, 0.4)
MS1MV2, MS1MV3, GLINT = (85742, 5822653), (93431, 5179510), (360232, 17091657)
WF4M, WF12M, WF42M = (205990, 4235242), (617970, 12720066), (2059906, 42474557)
CONFLICT = (1017970, 12720066)


@dataclass(frozen=True)
class Published:
    """One of its files, and on how many GPUs its README runs it."""

    file: str
    gpus: int
    network: str
    data: tuple[int, int]  # identities, images
    margin: tuple[float, float, float]
    decay: float
    lr: float
    batch: int  # global
    epochs: int = 20
    warmup: int = 0
    rate: float = 1.0
    filtered: float = 0.0
    optimizer: str = "sgd"


ViT = partial(Published, data=WF42M, margin=COSFACE, decay=0.1, lr=0.001, epochs=40, warmup=4, rate=0.3,
              optimizer="adamw")  # fmt: skip
PUBLISHED = {
    "ms1mv2_r50": Published("ms1mv2_r50", 8, "iresnet50", MS1MV2, ARCFACE, 5e-4, 0.1, 1024),
    "ms1mv2_r100": Published("ms1mv2_r100", 8, "iresnet100", MS1MV2, ARCFACE, 5e-4, 0.1, 1024),
    "ms1mv2_mbf": Published("ms1mv2_mbf", 8, "mobilefacenet", MS1MV2, ARCFACE, 1e-4, 0.1, 1024, 40),
    "ms1mv3_r50": Published("ms1mv3_r50", 8, "iresnet50", MS1MV3, ARCFACE, 5e-4, 0.1, 1024),
    "ms1mv3_r50_onegpu": Published("ms1mv3_r50_onegpu", 1, "iresnet50", MS1MV3, ARCFACE, 5e-4, 0.02, 128),
    "ms1mv3_r100": Published("ms1mv3_r100", 8, "iresnet100", MS1MV3, ARCFACE, 5e-4, 0.1, 1024),
    "ms1mv3_mbf": Published("ms1mv3_mbf", 8, "mobilefacenet", MS1MV3, ARCFACE, 1e-4, 0.1, 1024, 40),
    "glint360k_r50": Published("glint360k_r50", 8, "iresnet50", GLINT, COSFACE, 1e-4, 0.1, 1024),
    "glint360k_r100": Published("glint360k_r100", 8, "iresnet100", GLINT, COSFACE, 1e-4, 0.1, 1024),
    "glint360k_mbf": Published("glint360k_mbf", 8, "mobilefacenet", GLINT, COSFACE, 1e-4, 0.1, 1024),
    "webface4m_r50": Published("wf4m_r50", 8, "iresnet50", WF4M, COSFACE, 5e-4, 0.1, 1024),
    "webface4m_r100": Published("wf4m_r100", 8, "iresnet100", WF4M, COSFACE, 5e-4, 0.1, 1024),
    "webface4m_mbf": Published("wf4m_mbf", 8, "mobilefacenet", WF4M, COSFACE, 1e-4, 0.1, 1024),
    "webface12m_r50": Published("wf12m_r50", 8, "iresnet50", WF12M, COSFACE, 5e-4, 0.1, 1024),
    "webface12m_r100": Published("wf12m_r100", 8, "iresnet100", WF12M, COSFACE, 5e-4, 0.1, 1024),
    "webface12m_mbf": Published("wf12m_mbf", 8, "mobilefacenet", WF12M, COSFACE, 1e-4, 0.1, 1024),
    "webface12m_pfc02_r100": Published("wf12m_pfc02_r100", 8, "iresnet100", WF12M, COSFACE, 5e-4, 0.1, 1024, rate=0.2),
    "webface12m_pfc03_r100": Published("", 8, "iresnet100", WF12M, COSFACE, 5e-4, 0.1, 1024, rate=0.3),  # README alone
    "webface12m_flip_r50": Published("wf12m_flip_r50", 8, "iresnet50", WF12M, COSFACE, 5e-4, 0.1, 1024, warmup=2),
    "webface12m_flip_pfc01_filter04_r50": Published(
        "wf12m_flip_pfc01_filter04_r50", 8, "iresnet50", WF12M, COSFACE, 5e-4, 0.1, 1024,
        warmup=2, rate=0.1, filtered=0.4),
    "webface12m_conflict_r50": Published(
        "wf12m_conflict_r50", 8, "iresnet50", CONFLICT, COSFACE, 5e-4, 0.1, 1024, warmup=2),
    "webface12m_conflict_pfc03_filter04_r50": Published(
        "wf12m_conflict_r50_pfc03_filter04", 8, "iresnet50", CONFLICT, COSFACE, 5e-4, 0.1, 1024,
        warmup=2, rate=0.3, filtered=0.4),
    "webface42m_pfc02_r100": Published("wf42m_pfc02_r100", 8, "iresnet100", WF42M, COSFACE, 5e-4, 0.1, 1024, rate=0.2),
    "webface42m_pfc02_r100_bs2k": Published(
        "wf42m_pfc02_r100_16gpus", 16, "iresnet100", WF42M, COSFACE, 5e-4, 0.2, 2048, warmup=2, rate=0.2),
    "webface42m_pfc02_r100_bs4k": Published(
        "wf42m_pfc02_r100_32gpus", 32, "iresnet100", WF42M, COSFACE, 5e-4, 0.4, 4096, warmup=2, rate=0.2),
    "webface42m_pfc02_r100_bs4k_lr03": Published(
        "wf42m_pfc02_16gpus_r100", 16, "iresnet100", WF42M, COSFACE, 5e-4, 0.3, 4096, warmup=1, rate=0.2),
    "webface42m_pfc02_r50_bs4k": Published(
        "wf42m_pfc02_8gpus_r50_bs4k", 8, "iresnet50", WF42M, COSFACE, 5e-4, 0.4, 4096, warmup=2, rate=0.2),
    "webface42m_pfc02_r50_bs8k": Published(
        "wf42m_pfc02_16gpus_r50_bs8k", 16, "iresnet50", WF42M, COSFACE, 5e-4, 0.6, 8192, warmup=4, rate=0.2),
    "webface42m_pfc02_mbf_bs8k": Published(
        "wf42m_pfc02_16gpus_mbf_bs8k", 16, "mobilefacenet", WF42M, COSFACE, 1e-4, 0.4, 8192, warmup=2, rate=0.2),
    "webface42m_pfc0008_r100": Published(
        "wf42m_pfc0008_32gpu_r100", 32, "iresnet100", WF42M, COSFACE, 5e-4, 0.4, 16384, warmup=2, rate=0.0),
    **{f"webface42m_pfc03_r{depth}": Published(
        f"wf42m_pfc03_32gpu_r{depth}", 32, f"iresnet{depth}", WF42M, COSFACE, 5e-4, 0.4, 4096, warmup=2, rate=0.3)
       for depth in (18, 50, 100, 200)},
    **{f"webface42m_pfc03_vit_{size}": ViT(f"wf42m_pfc03_40epoch_64gpu_vit_{size}", 64, f"vit_{size}", batch=24576)
       for size in "tsbl"},
    "webface42m_pfc03_vit_t_bs4k": ViT("wf42m_pfc03_40epoch_8gpu_vit_t", 8, "vit_t", batch=4096),
}  # fmt: skip
SAME = {"ms1mv2": "ms1mv2_r50", "ms1mv3": "ms1mv3_r50", "glint360k": "glint360k_r50", "webface4m": "webface4m_r50",
        "webface12m": "webface12m_r50", "webface42m": "webface42m_pfc02_r100", "resnet_rsb": "resnet_rsb_a2_r50",
        "resnet_v2": "resnet_v2_r50", "resnet_fast": "resnet_fast_r50_16ep"}  # fmt: skip
every_face_recipe = pytest.mark.parametrize("name", PUBLISHED)


@every_face_recipe
def test_a_face_recipe_is_what_arcface_torch_trains(name):
    config, theirs = load_recipe(name), PUBLISHED[name]
    data, head, optim = config.data, config.head, config.optim
    assert (data.num_classes, data.global_batch_size, data.image_size) == (theirs.data[0], theirs.batch, 112)
    assert (config.model.name, config.model.embedding_dim, config.model.dropout) == (theirs.network, 512, 0.0)
    assert (head.m1, head.m2, head.m3, head.filter_threshold) == (*theirs.margin, theirs.filtered)
    assert (head.scale, head.gradient, head.precision) == (64.0, "auto", "fp32")
    assert head.sample_rate == pytest.approx(theirs.rate, abs=1e-6)
    assert (optim.name, optim.momentum, optim.weight_decay) == (theirs.optimizer, 0.9, theirs.decay)
    assert optim.decay_norms and optim.clip_grad_norm == 5.0
    assert optim.lr_batch_size  # another batch scales the rate
    assert optim.lr_scaling == ("sqrt" if theirs.optimizer == "adamw" else "linear")
    assert (config.augment.flip, config.data.normalise, config.evaluate.flip) == (True, "symmetric", True)
    plan = config.schedule
    assert (plan.epochs, plan.samples, plan.steps) == (theirs.epochs, 0, 0)  # epochs, whatever the batch


@every_face_recipe
def test_its_learning_rate_is_arcface_torchs_at_every_epoch(name):
    config, theirs = load_recipe(name), PUBLISHED[name]
    images = theirs.data[1]
    assert scaled_lr(config) == pytest.approx(theirs.lr)
    assert steps_of(config, images).total == pytest.approx(images // theirs.batch * theirs.epochs, rel=5e-4)
    for epoch in range(1, theirs.epochs):
        left = min(1.0, (theirs.epochs - epoch) / (theirs.epochs - theirs.warmup))
        expected = theirs.lr * left * min(1.0, epoch / theirs.warmup if theirs.warmup else 1.0)
        assert learning_rate(config, epoch, images) == pytest.approx(expected, rel=2e-3), epoch


@pytest.mark.parametrize("name", SAME)
def test_the_recipe_of_a_file_is_one_of_its_variants(name):
    base, variant = load_recipe(name), load_recipe(SAME[name])
    assert from_mapping({"recipe": name, "description": base.description}, variant) == base


def test_transformers_are_as_its_code_trains_them():
    models = [load_recipe(f"webface42m_pfc03_vit_{size}").model for size in "tsbl"]
    rest = [(m.drop_path, m.mask_ratio, m.checkpoint_activations) for m in models]
    assert rest == [(0.05, 0.0, False)] * 2 + [(0.05, 0.1, True)] * 2
    # Rate times weight decay, which sets how fast a normalised centre turns, is that of SGD at this batch.
    for name in ("webface42m_pfc03_vit_t", "webface42m_pfc03_vit_t_bs4k"):
        ours = load_recipe(name)
        sgd = at_batch(load_recipe("webface42m_pfc03_r100"), ours.data.global_batch_size)
        turn = scaled_lr(ours) * ours.optim.head_lr_factor * ours.optim.weight_decay
        assert turn == pytest.approx(scaled_lr(sgd) * sgd.optim.weight_decay)


@pytest.mark.skipif("MEGACLASS_ARCFACE_TORCH" not in os.environ, reason="needs a copy of arcface_torch")
def test_the_table_is_what_its_files_say(monkeypatch):
    class EasyDict(dict):
        __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__

    monkeypatch.setitem(sys.modules, "easydict", SimpleNamespace(EasyDict=EasyDict))
    folder = locate(os.environ["MEGACLASS_ARCFACE_TORCH"], ("configs/base.py",)) / "configs"
    short = {"mobilefacenet": "mbf", **{f"iresnet{depth}": f"r{depth}" for depth in (18, 50, 100, 200)}}
    read = set()
    for name, ours in PUBLISHED.items():
        theirs = EasyDict()
        for file in filter(None, ("base", ours.file)):
            scope = {}
            exec((folder / f"{file}.py").read_text(), scope)
            theirs |= scope["config"]
        if ours.file:
            read.add(ours.file)
            batch = theirs.batch_size * theirs.gradient_acc * ours.gpus
            assert theirs.network.startswith(short.get(ours.network, ours.network)), name
            assert (
                theirs.num_classes, theirs.num_image, batch, theirs.margin_list, theirs.embedding_size,
                theirs.weight_decay, theirs.momentum, theirs.lr, theirs.num_epoch, theirs.warmup_epoch,
                theirs.sample_rate, theirs.interclass_filtering_threshold, theirs.optimizer,
            ) == (
                *ours.data, ours.batch, ours.margin, 512, ours.decay, 0.9, ours.lr, ours.epochs, ours.warmup,
                ours.rate, ours.filtered, ours.optimizer,
            ), name  # fmt: skip
    # Twins at another number of GPUs, a file for speed alone, and the one network that we lack.
    left = {"3millions", "base", "__init__", "wf42m_pfc02_32gpus_r50_bs4k", "wf42m_pfc03_40epoch_8gpu_vit_b",
            "wf42m_pfc02_vit_h"}  # fmt: skip
    assert {path.stem for path in folder.glob("*.py")} - read == left


# -- speed on noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in recipe_names() if n == "synthetic" or n.startswith("synthetic_")])
def test_speed_recipes_are_the_published_sizes(name):
    config = load_recipe(name)
    millions = re.search(r"_(\d+)m", name)
    size = int(millions[1]) * 1_000_000 if millions else 618_000
    rate = 0.1 if "pfc01" in name or size >= 50_000_000 else 1.0
    network = re.search(r"_r(\d+)$", name)
    assert (config.data.num_classes, config.head.sample_rate) == (size, rate)
    assert config.model.name == f"iresnet{network[1] if network else 50}"
    assert (config.data.global_batch_size, config.schedule.samples) == (1024, 204_800)
    assert (config.head.storage, config.model.embedding_dim) == ("fp32", 512)
    gigabytes = size * (2 * 4 * 512 + (4 if rate < 1 else 0)) / 1e9  # docs/explanation/head.md, Storage
    told = re.search(r"([\d.]+) GB of centres and momentum", config.description)
    assert (told is None) == (name == "synthetic_618k")  # another name
    assert told is None or float(told[1]) == pytest.approx(gigabytes, rel=0.02)


# -- what is said of them -------------------------------------------------------------------------------


def test_the_document_lists_every_recipe():
    """What each of them sets is put beside it from the recipe itself, when the site is built."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    told = [name for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert {*told} == {*recipe_names()} and len(told) == len({*told})


def test_the_list_of_recipes_names_each_file_once_and_fits_a_screen(told):
    short = told("recipes")
    assert "_pfc03_vit_b" in short and "webface42m_pfc03_vit_b" not in short
    assert len(short.splitlines()) < 60
    whole = told("recipes", "--all")
    assert all(re.search(rf"^ *{name} ", whole, re.MULTILINE) for name in recipe_names())
