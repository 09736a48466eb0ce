"""What every backbone keeps, at small sizes, and what is particular to one."""

import pytest
import torch
from torch import nn

from megaclass.errors import UserError
from megaclass.models.iresnet import BLOCKS, IResNet
from megaclass.models.layers import leave_out
from megaclass.models.mobilefacenet import MobileFaceNet
from megaclass.models.registry import BACKBONES, build_backbone
from megaclass.models.resnet import BasicBlock, Bottleneck, ResNet
from megaclass.models.vit import VisionTransformer

IMAGES = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def iresnet(**options) -> IResNet:
    return IResNet((1, 2, 1, 1), width=8, image_size=40, embedding_dim=16, **options)


def resnet(**options) -> ResNet:
    return ResNet(Bottleneck, (1, 1, 1, 1), width=8, **options)


def vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(16, 3, **{"image_size": 40, "embedding_dim": 12, **options})


SMALL = {
    "convnet": lambda: build_backbone("convnet", embedding_dim=16, width=8, image_size=40),
    "iresnet": iresnet,
    "mobilefacenet": lambda: MobileFaceNet((1, 1, 1, 1), 1, image_size=40),
    "resnet": resnet,
    "resnet-d": lambda: resnet(stem="deep", shortcut="pool"),
    "resnet, recomputed": lambda: resnet(checkpoint_activations=True),
    "vit": vit,
    "vit, masked": lambda: vit(mask_ratio=0.25),
}


@pytest.mark.parametrize("image_size", [33, 64])
@pytest.mark.parametrize("name", sorted({builder: name for name, builder in reversed(BACKBONES.items())}.values()))
def test_every_backbone_states_its_embedding_dim_and_image_size(name, image_size):
    with torch.device("meta"):
        backbone = build_backbone(name, image_size=image_size)
        images = torch.empty(2, 3, image_size, image_size)
    assert backbone.image_size == image_size
    assert backbone.eval()(images).shape == (2, backbone.embedding_dim)


@pytest.mark.parametrize("build", SMALL.values(), ids=SMALL)
def test_bf16_autocast_in_channels_last_gives_fp32_embeddings_and_gradients(build):
    backbone = build().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = backbone(IMAGES.to(memory_format=torch.channels_last))
    assert embeddings.dtype == torch.float32
    embeddings.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)


@pytest.mark.parametrize("build", SMALL.values(), ids=SMALL)
def test_fp64_runs_in_fp64(build):
    assert build().double()(IMAGES.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (iresnet, {"dropout": 0.3}),
        (resnet, {"drop_path": 0.3, "dropout": 0.3}),
        (vit, {"drop_path": 0.3}),
        (vit, {"mask_ratio": 0.5}),
    ],
)
def test_checkpointed_activations_change_nothing(build, options):
    results = []
    for checkpoint_activations in (False, True):
        torch.manual_seed(0)
        backbone = build(checkpoint_activations=checkpoint_activations, **options)
        torch.manual_seed(2)
        embeddings = backbone(IMAGES)
        embeddings.pow(3).mean().backward()
        gradients = [p.grad for p in backbone.parameters() if p.requires_grad]
        results.append((embeddings, gradients, list(backbone.buffers())))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


# -- residual networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", sorted(BLOCKS))
def test_depth_counts_the_convolutions_and_the_linear_layer(depth):
    layers = 2 * sum(BLOCKS[depth]) + 2
    assert layers == (198 if depth == 200 else depth)  # the published r200 has two fewer than its name


def test_initial_weights_of_iresnet():
    torch.manual_seed(0)
    backbone = IResNet(BLOCKS[18])
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert [name for name, p in backbone.named_parameters() if not p.requires_grad] == ["features.weight"]
    assert torch.equal(backbone.features.weight, torch.ones(512))


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11.18), (34, 21.28), (50, 23.51), (101, 42.50), (152, 58.14)])
def test_parameter_counts_without_the_classifier(depth, parameters):
    with torch.device("meta"):
        backbone = build_backbone(f"resnet{depth}")
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(parameters, abs=0.006)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_blocks_start_as_their_shortcut(block):
    x = torch.rand(2, block.expansion * 8, 4, 4)
    for zero in (True, False):
        stage = ResNet(block, (2, 1, 1, 1), width=8, zero_init_residual=zero).layer1
        assert torch.equal(stage[1](x), x) == zero


def test_small_stem_keeps_the_resolution():
    seen = []
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), width=8, stem="small", image_size=32)
    backbone.layer1.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, 64)
    assert seen == [(2, 8, 32, 32)]
    with pytest.raises(UserError, match="stem: 'tiny'"):
        ResNet(BasicBlock, (1, 1, 1, 1), stem="tiny")


# -- vision transformers ------------------------------------------------------------------------------


def test_the_blocks_leave_out_more_samples_the_later_they_come():
    """0 in the first, evenly more in each: as timm's ``drop_path_rate``."""
    assert [block.drop_path for block in vit(drop_path=0.2).blocks] == [0.0, 0.1, 0.2]
    residual = ResNet(BasicBlock, (2, 1, 1, 1), width=8, drop_path=0.2)
    stages = (residual.layer1, residual.layer2, residual.layer3, residual.layer4)
    assert [block.drop_path for stage in stages for block in stage] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_a_sample_keeps_a_branch_or_not_as_a_whole_and_the_mean_stays():
    branch = torch.ones(5000, 2, 3)
    kept = leave_out(branch, 0.2, training=True)
    assert {round(value, 4) for value in kept.unique().tolist()} == {0.0, 1.25}
    assert torch.equal(kept.amax((1, 2)), kept.amin((1, 2)))
    assert kept.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(leave_out(branch, 0.2, training=False), branch)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_residual_block_without_its_branch_is_its_shortcut_and_evaluation_has_them_all(block):
    x = torch.rand(8, block.expansion * 8, 4, 4)
    last = ResNet(block, (2, 1, 1, 1), width=8, zero_init_residual=False).layer1[1]
    whole, last.drop_path = last.eval()(x), 0.5
    assert torch.equal(last(x), whole)
    torch.manual_seed(0)
    skipped = (last.train()(x) == x).flatten(1).all(1)
    assert 0 < skipped.sum() < len(x)


def test_dropout_of_a_resnet_is_of_its_features_in_training_alone():
    backbone = resnet(dropout=0.5)
    dropped, backbone.dropout = backbone(IMAGES), 0.0
    whole = backbone(IMAGES)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    assert 0.3 < kept.sum() / (whole != 0).sum() < 0.7
    found, backbone.dropout = backbone.eval()(IMAGES), 0.5
    assert torch.equal(backbone(IMAGES), found)


def test_masked_patches_are_not_seen_in_training_and_all_are_in_evaluation():
    backbone = vit(mask_ratio=0.5)  # 16 patches
    seen = []
    backbone.blocks.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    backbone(IMAGES).sum().backward()
    backbone.eval()(IMAGES)
    assert seen == [8, 16]
    assert backbone.mask_token.grad.abs().sum() > 0


def test_tokens_go_back_to_the_places_of_their_patches():
    backbone = vit(mask_ratio=0.5)
    tokens = torch.randn(6, 16, 16)
    order, kept = backbone._leave_out(tokens)
    back = backbone._put_back(kept, order)
    whole = (back == tokens).all(dim=-1)
    masked = (back == backbone.mask_token).all(dim=-1)
    assert torch.equal(whole, ~masked) and torch.equal(whole.sum(1), torch.full((6,), 8))
    assert len({tuple(row.tolist()) for row in whole}) > 1  # a draw for each sample


def test_without_masks_the_token_for_them_does_not_train():
    assert not vit().mask_token.requires_grad  # DistributedDataParallel would wait for its gradient


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(UserError, match=r"data.image_size: 8 is less than a patch of 9 pixels"):
        vit(image_size=8)
