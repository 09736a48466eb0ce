"""What is measured computes what an evaluation does."""

import copy
import itertools

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from megaclass.bench.old_infer.cases import InferCase, config_of, resolved
from megaclass.bench.old_infer.images import host_batches
from megaclass.bench.old_infer.model import build_scorer, cast_weights
from megaclass.data.augment import EvalTransform
from megaclass.data.loader import eval_batches
from megaclass.data.open import open_dataset
from megaclass.errors import UserError
from megaclass.train.model import build_model

CPU = torch.device("cpu")


def case_of(backbone, **changes):
    recipe = "resnet50_imagenet" if backbone.startswith("resnet") else "faces_r50"
    return resolved(InferCase(recipe=recipe, backbone=backbone, **{"image_size": 112, **changes}))


@pytest.mark.parametrize(
    ("backbone", "in_fp32"),
    [("convnet", 1), ("iresnet18", 1), ("mobilefacenet", 3), ("resnet18", 1), ("resnet50", 1)],
)
def test_weights_that_are_cast_once_give_the_same_bits(backbone, in_fp32):
    """All but the first convolution, and those that a backbone computes in fp32 anyhow."""
    scorer, _ = build_scorer(config_of(case_of(backbone, precision="bf16")), CPU)
    images = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        before = scorer(images)
        cast_weights(scorer, images)
        after = scorer(images)
    weights = [m.weight.dtype for m in scorer.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert weights.count(torch.bfloat16) == len(weights) - in_fp32 > 0
    assert after.dtype == torch.float32 and torch.equal(before, after) and before.std() > 0


def test_logits_are_those_of_the_head_on_features_in_fp32():
    scorer, arithmetic = build_scorer(config_of(case_of("resnet18", precision="bf16", num_classes=7)), CPU)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        with arithmetic.autocast():
            features = scorer.backbone(images)
        assert torch.equal(scorer(images), scorer.head.logits(features.float()))
    assert scorer(images).shape == (2, 7) and not scorer.training


def test_a_margin_head_leaves_embeddings():
    case = resolved(InferCase(recipe="glyphs"))
    scorer, _ = build_scorer(config_of(case), CPU)
    assert scorer.head is None and scorer(torch.randn(3, 3, 48, 48)).shape == (3, 256)


def test_no_branch_computes_zeros():
    config = config_of(case_of("resnet18"))
    plain, _ = build_model(config, CPU)
    assert not plain.layer1[0].bn2.weight.any()
    scorer, _ = build_scorer(config, CPU)
    norms = [m for m in scorer.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(norm.weight.any() for norm in norms)
    assert torch.equal(scorer.backbone.conv1.weight, plain.conv1.weight)


def test_the_weights_of_a_file_stay_as_they_are(tmp_path):
    case = case_of("resnet18")
    backbone, _ = build_model(config_of(case), CPU)
    torch.save(backbone.state_dict(), tmp_path / "weights.pt")
    weights = {"model.weights": str(tmp_path / "weights.pt")}
    scorer, _ = build_scorer(config_of(resolved(InferCase(backbone="resnet18", settings=weights))), CPU)
    kept = copy.deepcopy(scorer.backbone.state_dict())
    assert all(torch.equal(kept[name], value) for name, value in backbone.state_dict().items())


def test_noise_comes_in_turns():
    case = resolved(InferCase(recipe="glyphs", batch_size=3))
    first, second, third = itertools.islice(host_batches(case, config_of(case), CPU), 3)
    assert first.shape == (3, 48, 48, 3) and first.dtype == torch.uint8
    assert torch.equal(first, third) and not torch.equal(first, second)


@pytest.fixture
def pictures(tmp_path):
    for number in range(5):
        folder = tmp_path / "val" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), np.full((60, 50, 3), 40 * number, np.uint8))
    return tmp_path


def test_a_set_is_read_as_an_evaluation_reads_it_and_begins_anew_at_its_end(pictures):
    case = case_of("resnet18", image_size=32, batch_size=3, data=str(pictures), iterations=2)
    found = [images.clone() for images in host_batches(case, config_of(case), CPU)]
    assert [len(batch) for batch in found] == [3] * 4  # two steps, of the warm-up and of the timed epoch
    transform = EvalTransform(32, config_of(case).evaluate.resize)
    (every,) = (b.images for b in eval_batches(open_dataset(pictures / "val"), transform, 5))
    assert torch.equal(torch.cat(found), torch.cat([every, every, every[:2]])) and every.unique().numel() > 4


def test_no_images_no_case(tmp_path):
    case = case_of("resnet18", data=str(tmp_path))
    with pytest.raises(UserError, match=str(tmp_path)):
        next(host_batches(case, config_of(case), CPU))
