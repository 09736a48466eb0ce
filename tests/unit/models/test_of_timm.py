"""Backbones of timm: our half beside a made module, and where timm is installed some families of its own."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import megaclass
import tiny
from megaclass.checkpoint import tensorfile
from megaclass.cli import main
from megaclass.config import Model
from megaclass.errors import UserError
from megaclass.models.registry import configured_backbone, last_layer, load_backbone_weights
from megaclass.plan.activations import passes_of
from megaclass.train.model import build_model


class Made(nn.Module):
    """What timm's models have in common."""

    def __init__(self, num_classes=tiny.CLASSES, drop_rate=None, img_size=None):
        super().__init__()
        self.img_size, self.drop_rate, self.num_features = img_size, drop_rate, 6
        self.pretrained_cfg = {"classifier": "head.fc", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}
        self.stem, self.head = nn.Conv2d(3, 6, 10, stride=4), nn.Sequential()
        self.head.fc = nn.Linear(6, num_classes) if num_classes else nn.Identity()

    def forward(self, images):
        return self.head(self.stem(images).mean((2, 3)))


@pytest.fixture
def timm(monkeypatch):
    """A made module in the place of timm; it knows ``made`` and ``fixed``, which wants its size of images."""
    names = ["made", "fixed"]
    module = SimpleNamespace(is_model=names.__contains__, list_models=lambda: names)
    module.get_pretrained_cfg = lambda name: SimpleNamespace(fixed_input_size=name == "fixed")
    given = lambda options: {key: value for key, value in options.items() if value is not None}  # noqa: E731
    module.create_model = lambda name, *, pretrained, **options: pretrained or Made(**given(options))
    monkeypatch.setitem(sys.modules, "timm", module)


def backbone(name="made", head="margin", **options):
    return configured_backbone(Model(name=f"timm/{name}", embedding_dim=4, **options), 16, head)


def test_an_embedding_for_a_margin_head_and_the_features_for_a_linear_one(timm):
    embeds, classifies = backbone("fixed", dropout=0.25), backbone(head="linear")
    images = torch.randn(3, 3, 16, 16)
    assert embeds(images).shape == (3, embeds.embedding_dim) == (3, 4)
    assert torch.equal(classifies(images), classifies.body(images)) and classifies.embedding_dim == 6
    assert embeds.body.drop_rate == 0.25 and embeds.body.img_size == 16 and not embeds.takes_any_size
    assert classifies.body.img_size is None and classifies.takes_any_size
    assert [name for name, p in embeds.named_parameters() if not p.requires_grad] == ["neck.1.weight"]


def test_a_size_that_the_model_does_not_take_is_told_before_anything_is_trained(timm, tmp_path):
    model = {"name": "timm/made", "width": 64}
    for section in ("data", "evaluate"):
        config = tiny.config(tmp_path, model=model, **{section: {"image_size": 9}})
        with pytest.raises(UserError, match=rf"{section}\.image_size: timm's model takes no images of 9 pix"):
            build_model(config, torch.device("cpu"))
    with pytest.raises(UserError, match=r"data\.image_size: timm's model takes no images of 9 pixels"):
        passes_of(tiny.config(tmp_path, model=model, data={"image_size": 9}), "fp32")


def test_a_pretrained_file_fills_the_body_and_its_classifier_a_linear_head(timm, monkeypatch):
    update = lambda state, model: {key.removeprefix("old."): value for key, value in state.items()}  # noqa: E731
    monkeypatch.setattr(sys.modules[__name__], "checkpoint_filter_fn", update, raising=False)
    older = {f"old.{key}": tensor for key, tensor in Made().state_dict().items()}
    target = backbone()
    drawn = target.neck[0].weight.clone()
    load_backbone_weights(target, {"state_dict": older}, "file")
    assert torch.equal(target.body.stem.weight, older["old.stem.weight"])
    assert torch.equal(target.neck[0].weight, drawn)
    assert torch.equal(last_layer(target, older, "file")["weight"], older["old.head.fc.weight"])
    with pytest.raises(UserError, match=r"file: .*1 missing \(body.stem.bias\)"):
        load_backbone_weights(target, {k: v for k, v in older.items() if k != "old.stem.bias"}, "file")


def test_a_network_with_a_body_of_its_own_takes_timms_file_and_ours(timm):
    """As TResNet has one."""
    target = backbone()
    target.body.body = nn.Conv2d(3, 6, 1)
    timms = {**Made().state_dict(), **nn.Conv2d(3, 6, 1).state_dict(prefix="body.")}
    for given in (timms, {**target.state_dict(), "body.body.weight": timms["body.weight"]}):
        nn.init.zeros_(target.body.body.weight)
        load_backbone_weights(target, given, "file")
        assert torch.equal(target.body.body.weight, timms["body.weight"])


def test_what_timm_does_not_know_is_told_in_a_line(timm, monkeypatch):
    for name in ("mode", "hf-hub:timm/made"):
        with pytest.raises(UserError, match=rf"no model '{name}' \(did you mean 'timm/made'\?\)"):
            backbone(name)
    with pytest.raises(UserError, match=r"refuses 'made' as it is set: .*'drop_path_rate'"):
        backbone(drop_path=0.1)
    broken = RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(broken))
    with pytest.raises(UserError, match="cannot be imported: operator torchvision::nms"):
        backbone()


FAMILIES = ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0", "convnext_atto", "mobilenetv3_small_050",
            "swin_tiny_patch4_window7_224"]  # fmt: skip


@pytest.mark.parametrize("kind", ["margin", "linear"])
@pytest.mark.parametrize("name", ["made", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_from_a_pretrained_file_to_an_export(request, tmp_path, caplog, name, kind):
    if name == "made":
        request.getfixturevalue("timm")
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    published = timm.create_model(name, pretrained=False, num_classes=tiny.CLASSES)
    tensorfile.write_tensors(tmp_path / "timm.safetensors", published.state_dict())
    given = {"weights": str(tmp_path / "timm.safetensors")}
    head = {"kind": kind, **given} if kind == "linear" else {}
    sections = {"data": {"image_size": 64}, "head": head, "schedule": {"steps": 3}}
    recipe = tiny.recipe(tmp_path, model={"name": f"timm/{name}", "width": 64, **given}, **sections)
    run, bundle = str(tmp_path / "run"), str(tmp_path / "bundle")
    assert main(["train", recipe]) == main(["train", recipe, "--resume", "--schedule.steps", "4"]) == 0
    assert main(["plan", recipe]) == main(["bundle", run, bundle]) == 0
    first, second = (megaclass.load(source, threads=1) for source in (run, bundle))
    images = list(torch.rand(3, 3, 64, 64))
    assert first.embed(images).tolist() == second.embed(images).tolist()
    assert [len(guesses) for guesses in first.classify(images)] == [5, 5, 5]
    if name == "made":
        assert caplog.text.count("data.normalise: the weights of timm/made expect") == 1  # a resume reads none
    else:
        assert main(["export", "onnx", run, str(tmp_path / "network.onnx")]) == 0
