"""A run that starts from what another one has learnt, or from the weights of torchvision."""

import shutil

import pytest
import torch

import tiny
from megaclass.checkpoint.weights import find_checkpoint, stored_rows, weights_of
from megaclass.errors import UserError
from megaclass.parallel.groups import World
from megaclass.train import loop
from megaclass.train.job import build_job
from megaclass.train.start import linear_head

WORLD = World(0, 1, torch.device("cpu"))
MARGIN = {"sample_rate": 0.5, "scale": 16.0}  # the last checkpoint but one owes rows their steps
HEADS = {"margin": MARGIN, "linear": {"kind": "linear"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs ``margin`` and ``linear`` of one set with names, each with its checkpoint of step 8 besides."""
    folder = tmp_path_factory.mktemp("trained")
    (tiny.write_records(folder / "records") / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    for name, head in HEADS.items():
        run = {"output": str(folder / name), "checkpoint_every": 8}
        average = {"ema_decay": 0.5} if name == "linear" else {}
        loop.run(tiny.config(folder, run=run, head=head, optim=average), WORLD)
    return folder


def started(folder, kind, source, **sections):
    sections = {"model": {"weights": source}, "head": HEADS[kind] | {"weights": source}} | sections
    return build_job(tiny.config(folder, **sections), WORLD)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("where", ["", "/checkpoints/step-00000008"])
def test_a_run_starts_from_another_ones_backbone_and_head(folder, kind, where):
    source = f"{folder / kind}{where}"
    job = started(folder, kind, source)
    stored = find_checkpoint(folder / kind, where[-13:] or "latest")
    torch.testing.assert_close(job.backbone.state_dict(), weights_of(stored, "backbone"), rtol=0, atol=0)
    if kind == "linear":  # the moving average, as it is evaluated
        torch.testing.assert_close(job.head.state_dict(), stored.state["ema"]["head"], rtol=0, atol=0)
    else:
        assert torch.equal(job.head.centres(), stored_rows(stored, "head/weight", 0, 6).fp32())


def test_a_linear_head_starts_from_the_last_layer_of_torchvision(tmp_path):
    weights = {
        "model": {"name": "resnet18", "weights": str(tmp_path / "tv.pth"), "width": 8, "embedding_dim": 512}
    }
    fresh = build_job(
        tiny.config(tmp_path, head=HEADS["linear"], model=weights["model"] | {"weights": ""}), WORLD
    )
    layer = {"fc.weight": torch.randn(6, fresh.head.in_features), "fc.bias": torch.randn(6)}
    torch.save(fresh.backbone.state_dict() | layer, tmp_path / "tv.pth")
    job = started(tmp_path, "linear", str(tmp_path / "tv.pth"), **weights)
    assert torch.equal(job.head.weight, layer["fc.weight"]) and torch.equal(job.head.bias, layer["fc.bias"])
    torch.save(fresh.backbone.state_dict(), tmp_path / "backbone.pth")
    assert linear_head(fresh.backbone, str(tmp_path / "backbone.pth")) is None


@pytest.mark.parametrize(
    ("kind", "source", "sections", "message"),
    [
        ("margin", "linear", {}, r"head\.weights: .*linear has no class centres"),
        ("linear", "margin", {}, r"head\.weights: .*margin has no linear layer"),
        ("margin", "margin", {"data": {"orientations": 2}}, "holds 6 classes of 16 columns, and 12 of 16 are trained"),
        ("linear", "linear", {"data": {"orientations": 2}}, "holds 6 classes of 16 columns, and 12 of 16 are trained"),
        ("margin", "margin", {"model": {"embedding_dim": 24}}, "holds 6 classes of 16 columns, and 6 of 24"),
        ("linear", "other", {}, "calls 'z' the class that is 'f' here"),
        ("margin", "empty", {}, "no checkpoint there"),
    ],
)  # fmt: skip
def test_a_head_of_other_classes_is_refused(folder, kind, source, sections, message):
    if source == "other":
        shutil.copytree(folder / "linear", folder / "other")
        (folder / "other/classes.txt").write_text("a\nb\nc\nd\ne\nz\n")
    (folder / "empty/checkpoints").mkdir(parents=True, exist_ok=True)
    model = {"model": {"weights": ""}} | sections
    with pytest.raises(UserError, match=message) as caught:
        started(folder, kind, str(folder / source), **model)
    assert "\n" not in str(caught.value)
