"""The vision transformers against arcface_torch's: names, shapes, outputs; and what ours adds. With timm where it
can be imported, and with a stand-in for its block everywhere."""

import sys
from types import ModuleType

import pytest
import torch

import fake_timm
from megaclass.errors import UserError
from megaclass.models.registry import build_backbone, load_backbone_weights
from megaclass.models.vit import SIZES, VisionTransformer
from unit.models import reference

needs_timm = pytest.mark.skipif(
    not fake_timm.available(), reason="needs timm, and a torchvision that fits this torch"
)


@pytest.fixture(params=["stand-in", pytest.param("timm", marks=needs_timm)])
def block(request, monkeypatch):
    if request.param == "stand-in":
        fake_timm.install(monkeypatch)
    return request.param


def small(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(16, 3, **{"image_size": 40, "embedding_dim": 12, **options})


IMAGES = torch.randn(6, 3, 40, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["vit_t", "vit_b"])
def test_names_and_shapes_are_those_of_arcface_torch(name, block):
    with torch.device("meta"):
        ours = reference.shapes(build_backbone(name))
    assert ours == reference.load(name)["shapes"]


def test_outputs_are_those_of_arcface_torch(block):
    fixture = reference.load("vit_t")
    ours = torch.tensor(reference.answer(build_backbone("vit_t"), fixture["image_size"]))
    torch.testing.assert_close(ours, torch.tensor(fixture["output"]), rtol=1e-5, atol=1e-5)


def test_its_checkpoints_load(block):
    trained, fresh = small(), small()
    state = {f"module.{name}": value + 0.5 for name, value in trained.state_dict().items()}
    load_backbone_weights(fresh, {"state_dict_backbone": state}, "checkpoint_gpu_0.pt")
    assert torch.equal(fresh.pos_embed, trained.pos_embed + 0.5)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_states_its_embedding(name, block):
    with torch.device("meta"):
        backbone = build_backbone(name, embedding_dim=64, image_size=32)
        assert backbone.eval()(torch.empty(2, 3, 32, 32)).shape == (2, 64)
    assert (backbone.embedding_dim, backbone.image_size) == (64, 32)


def test_the_blocks_leave_out_more_samples_the_later_they_come(monkeypatch):
    fake_timm.install(monkeypatch)
    assert [block.drop_path for block in small(drop_path=0.2).blocks] == [0.0, 0.1, 0.2]


def test_masked_patches_are_not_seen_in_training_and_all_are_in_evaluation(block):
    backbone = small(mask_ratio=0.5)  # 16 patches
    seen = []
    backbone.blocks.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    backbone(IMAGES).sum().backward()
    backbone.eval()(IMAGES)
    assert seen == [8, 16]
    assert backbone.mask_token.grad.abs().sum() > 0


def test_tokens_go_back_to_the_places_of_their_patches(block):
    backbone = small(mask_ratio=0.5)
    tokens = torch.randn(6, 16, 16)
    order, kept = backbone._leave_out(tokens)
    back = backbone._put_back(kept, order)
    whole = (back == tokens).all(dim=-1)
    masked = (back == backbone.mask_token).all(dim=-1)
    assert torch.equal(whole, ~masked) and torch.equal(whole.sum(1), torch.full((6,), 8))
    assert len({tuple(row.tolist()) for row in whole}) > 1  # a draw for each sample


def test_without_masks_the_token_for_them_does_not_train(block):
    backbone = small()
    backbone(IMAGES).square().mean().backward()
    assert not backbone.mask_token.requires_grad
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_checkpointed_activations_change_nothing(mask_ratio, block):
    results = []
    for checkpoint_activations in (False, True):
        backbone = small(checkpoint_activations=checkpoint_activations, mask_ratio=mask_ratio, drop_path=0.3)
        torch.manual_seed(2)
        embeddings = backbone(IMAGES)
        embeddings.pow(3).mean().backward()
        gradients = [p.grad for p in backbone.parameters() if p.requires_grad]
        results.append((embeddings, gradients, list(backbone.buffers())))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_bf16_autocast_gives_fp32_embeddings_and_gradients(block):
    backbone = small(mask_ratio=0.25).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = backbone(IMAGES)
    assert embeddings.dtype == torch.float32
    embeddings.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())


def test_fp64_runs_in_fp64(block):
    assert small().double()(IMAGES.double()).dtype == torch.float64


def test_an_image_smaller_than_a_patch_is_refused(block):
    with pytest.raises(UserError, match=r"data.image_size: 8 is less than a patch of 9 pixels"):
        small(image_size=8)


def test_without_timm_one_line_says_what_to_install(monkeypatch):
    fake_timm.forget(monkeypatch)
    with pytest.raises(
        UserError, match=r"^model.name: .* need timm.*; run: pip install timm torchvision"
    ) as e:
        build_backbone("vit_t")
    assert "\n" not in str(e.value)


def test_a_torchvision_of_another_build_is_named_as_the_reason(monkeypatch):
    """timm is there, and fails to import with whatever torchvision raises."""

    class Broken(ModuleType):
        def __getattr__(self, name):
            if name == "Block":
                raise RuntimeError("operator torchvision::nms does not exist\nand more")
            raise AttributeError(name)

    fake_timm.install(monkeypatch)
    monkeypatch.setitem(sys.modules, fake_timm.MODULE, Broken(fake_timm.MODULE))
    with pytest.raises(UserError, match=r"\(operator torchvision::nms does not exist\)"):
        build_backbone("vit_t")
