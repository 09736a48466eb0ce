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


class Made(nn.Module):
    """What timm's models have in common."""

    def __init__(self, num_classes=tiny.CLASSES, drop_rate=0.0, img_size=None):
        super().__init__()
        self.img_size, self.num_features = img_size, 6
        self.pretrained_cfg = {"classifier": "head.fc", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.head = nn.Sequential()
        self.head.drop = nn.Dropout(drop_rate)
        self.head.fc = nn.Linear(6, num_classes) if num_classes else nn.Identity()

    def forward(self, images):
        return self.head(self.stem(images).mean((2, 3)))


@pytest.fixture
def timm(monkeypatch):
    """A made module in the place of timm; it knows ``made`` and ``fixed``, which wants its size of images."""

    def create_model(name, pretrained, **options):
        assert not pretrained
        return Made(**{option: value for option, value in options.items() if value is not None})

    names = ["made", "fixed"]
    config = lambda name: SimpleNamespace(fixed_input_size=name == "fixed")  # noqa: E731
    known = {"is_model": names.__contains__, "list_models": lambda: names, "get_pretrained_cfg": config}
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, **known))


def backbone(name="made", head="margin", **options):
    return configured_backbone(Model(name=f"timm/{name}", embedding_dim=4, **options), 16, head)


def test_an_embedding_for_a_margin_head_and_the_features_for_a_linear_one(timm):
    embeds, classifies = backbone("fixed", dropout=0.25), backbone(head="linear")
    images = torch.randn(3, 3, 16, 16)
    assert embeds(images).shape == (3, embeds.embedding_dim) == (3, 4)
    assert torch.equal(classifies(images), classifies.body(images)) and classifies.embedding_dim == 6
    assert embeds.body.head.drop.p == 0.25 and embeds.body.img_size == 16 and not embeds.takes_any_size
    assert classifies.body.img_size is None and classifies.takes_any_size
    assert [name for name, p in embeds.named_parameters() if not p.requires_grad] == ["neck.1.weight"]


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


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("mode", {}, r"no model 'mode' \(did you mean 'timm/made'\?\)"),
        ("hf-hub:timm/resnet18", {}, "no model"),
        ("made", {"drop_path": 0.1}, "refuses 'made' as it is set: .*'drop_path_rate'"),
        ("made", {"width": 8}, "takes no option 'width'"),
    ],
)
def test_what_timm_does_not_know_is_told_in_a_line(timm, name, options, told):
    with pytest.raises(UserError, match=told):
        backbone(name, **options)


@pytest.mark.parametrize("error", [ImportError("no timm"), RuntimeError("operator nms does not exist")])
def test_without_timm_or_the_torchvision_that_it_needs(monkeypatch, error):
    monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=r"megaclass\[timm\]|cannot be imported: operator nms"):
        backbone()


def whole_path(folder, name, kind, size=tiny.SIZE):
    """Trained from a pretrained file, resumed, planned and given away: the same model each time."""
    published = sys.modules["timm"].create_model(name, pretrained=False, num_classes=tiny.CLASSES)
    tensorfile.write_tensors(folder / "timm.safetensors", published.state_dict())
    given = {"weights": str(folder / "timm.safetensors")}
    head = {"kind": kind, **given} if kind == "linear" else {}
    sections = {"head": head, "data": {"image_size": size}, "schedule": {"steps": 3}}
    recipe = tiny.recipe(folder, model={"name": f"timm/{name}", "width": 64, **given}, **sections)
    run, bundle = str(folder / "run"), str(folder / "bundle")
    assert main(["train", recipe]) == main(["train", recipe, "--resume", "--schedule.steps", "4"]) == 0
    assert main(["plan", recipe]) == main(["bundle", run, bundle]) == 0
    first, second = (megaclass.load(source, threads=1) for source in (run, bundle))
    images = list(torch.rand(3, 3, size, size))
    assert first.embed(images).tolist() == second.embed(images).tolist()
    assert [len(guesses) for guesses in first.classify(images)] == [5, 5, 5]


@pytest.mark.parametrize("kind", ["margin", "linear"])
def test_from_a_pretrained_file_to_a_bundle(timm, tmp_path, caplog, kind):
    whole_path(tmp_path, "made", kind)
    assert caplog.text.count("data.normalise: the weights of timm/made expect") == 1  # a resume reads none


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["margin", "linear"])
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "efficientnet_b0",
                                  "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"])  # fmt: skip
def test_families_of_timm(tmp_path, name, kind):
    pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    whole_path(tmp_path, name, kind, size=64)
    assert main(["export", "onnx", str(tmp_path / "run"), str(tmp_path / "network.onnx")]) == 0
