"""A run that starts from what another one has learnt, of the same classes or others, or from torchvision's weights."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tiny
from megaclass.checkpoint.weights import find_checkpoint, stored_rows, weights_of
from megaclass.config import to_toml
from megaclass.data.views import Subset
from megaclass.errors import UserError
from megaclass.heads.partial_fc import PartialFC
from megaclass.train.job import image_reader
from megaclass.train.start import linear_head

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
        tiny.run(folder, run=run, head=head, optim=average)
    return folder


def started(folder, kind, source, **sections):
    sections = {"model": {"weights": source}, "head": HEADS[kind] | {"weights": source}} | sections
    return tiny.job(folder, **sections)


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
    weights = {"model": {"name": "resnet18", "weights": str(tmp_path / "tv.pth"), "width": 8, "embedding_dim": 512}}
    fresh = tiny.job(tmp_path, head=HEADS["linear"], model=weights["model"] | {"weights": ""})
    layer = {"fc.weight": torch.randn(6, fresh.head.in_features), "fc.bias": torch.randn(6)}
    torch.save(fresh.backbone.state_dict() | layer, tmp_path / "tv.pth")
    job = started(tmp_path, "linear", str(tmp_path / "tv.pth"), **weights)
    assert torch.equal(job.head.weight, layer["fc.weight"]) and torch.equal(job.head.bias, layer["fc.bias"])
    torch.save(fresh.backbone.state_dict(), tmp_path / "backbone.pth")
    assert linear_head(fresh.backbone, str(tmp_path / "backbone.pth")) is None


def renamed(folder, name, classes):
    """The set of ``folder/records``, some classes under other names, as the set ``name``: text in label order."""
    shutil.copytree(folder / "records", folder / name / "records", dirs_exist_ok=True)
    (folder / name / "records/classes.txt").write_text("\n".join(classes) + "\n")
    return {"path": str(folder / name / "records")}


@pytest.mark.parametrize("storage", ["fp32", "bf16", "int8_rowwise"])
@pytest.mark.parametrize("new", ["mean", "random"])
def test_centres_go_to_the_classes_of_their_names_and_new_ones_get_their_length(folder, storage, new):
    """Reordered, ``e`` and ``a`` dropped, ``x`` and ``y`` new."""
    source = str(folder / "margin")
    head = MARGIN | {"storage": storage, "weights": source, "new_classes": new}
    job = started(folder, "margin", source, data=renamed(folder, "renamed", "dxcbyf"), head=head)
    theirs = stored_rows(find_checkpoint(folder / "margin", "latest"), "head/weight", 0, 6).fp32()
    found, taken = job.head.centres(), theirs[[3, 2, 1, 5]]
    off = (found[[0, 2, 3, 5]] - taken).norm(dim=1) / taken.norm(dim=1)
    assert off.max() <= {"fp32": 0, "bf16": 0.004, "int8_rowwise": 0.02}[storage]
    assert ((found[[1, 4]].norm(dim=1) / taken.norm(dim=1).mean() - 1).abs() < 0.01).all()
    drawn = PartialFC(6, 16, seed=0).centres() if new == "random" else by_hand(job, [1, 4])
    assert F.cosine_similarity(found[[1, 4]], drawn[[1, 4]]).min() > 0.999
    assert job.started.endswith("4 classes are taken, 2 are new, 2 are dropped")


def by_hand(job, classes):
    """The mean of the normalised embeddings of the first 16 images of each of these classes."""
    found, reader = torch.zeros(job.num_classes, 16), image_reader(job.config, job.arithmetic)
    for label in classes:
        early = Subset(job.dataset, np.flatnonzero(job.dataset.labels() == label)[:16])
        (images,) = reader.batches(early, 0, len(early))
        found[label] = F.normalize(job.backbone.eval()(images)).mean(0).detach()
    return found


def test_the_mean_is_of_early_images_and_turned_classes_are_classes_of_their_own(tmp_path):
    """With two sub-centres, of which the first gets the mean."""
    (tiny.write_records(tmp_path / "records", classes=3, samples=20) / "classes.txt").write_text("a\nb\nc\n")
    head, source = {"sub_centres": 2, "scale": 16.0}, {"weights": str(tmp_path / "run")}
    tiny.run(tmp_path, head=head)
    job = tiny.job(tmp_path, data={"orientations": 2}, model=source, head=head | source)
    assert job.class_names == ["a", "b", "c", "a@1", "b@1", "c@1"]
    theirs, ours = find_checkpoint(tmp_path / "run", "latest").rows("head/weight"), job.head.centres()
    assert torch.equal(ours[:6], theirs)
    first, second = F.cosine_similarity(ours[6:].view(3, 2, 16), by_hand(job, [3, 4, 5])[3:, None], dim=2).T
    assert first.min() > 0.99999 and second.abs().max() < 0.9


def test_rows_of_a_linear_head_go_to_the_classes_of_their_names(folder):
    job = started(folder, "linear", str(folder / "linear"), data=renamed(folder, "renamed", "dxcbyf"))
    theirs = weights_of(find_checkpoint(folder / "linear", "latest"), "head")
    for name, values in job.head.named_parameters():
        assert torch.equal(values[[0, 2, 3, 5]], theirs[name][[3, 2, 1, 5]])
        assert not torch.isin(values[[1, 4]].detach(), theirs[name]).any()


def test_without_names_classes_are_taken_in_their_order_and_a_line_says_so(folder, tmp_path):
    shutil.copytree(folder / "margin", tmp_path / "run")
    (tmp_path / "run/classes.txt").unlink()
    told = started(folder, "margin", str(tmp_path / "run")).started
    assert "6 classes are taken in their order, for not both sides have names, 0 are new" in told


def test_a_resume_changes_what_hangs_on_the_weights_that_the_run_has(told, folder, tmp_path):
    """The recipe has none."""
    recipe, run = tmp_path / "tiny.toml", {"output": str(tmp_path / "run")}
    recipe.write_text(to_toml(tiny.config(folder, run=run)))
    tiny.run(folder, run=run, model={"weights": str(folder / "margin")})
    words = "--resume --optim.freeze_backbone_epochs 100 --schedule.steps 12"
    said = told("train", recipe, *words.split())
    assert "freeze_backbone_epochs is 100.0 from here on" in said and "frozen for the first 12 steps" in said


@pytest.mark.parametrize(
    ("kind", "source", "sections", "message"),
    [
        ("margin", "linear", {}, r"head\.weights: .*linear has no class centres"),
        ("linear", "margin", {}, r"head\.weights: .*margin has no linear layer"),
        ("margin", "nameless", {"data": {"orientations": 2}}, "holds 6 classes of 16 columns, and 12 of 16 are"),
        ("margin", "margin", {"model": {"embedding_dim": 24}}, "holds 6 classes of 16 columns, and 6 of 24"),
        ("margin", "margin", {"data": "uvwxyz"}, r"no class of data\.path \(its first is 'a', here 'u'"),
        ("margin", "margin", {"data": "abcdee"}, r"head\.weights: 2 classes are called 'e'; give each a name"),
        ("margin", "margin", {"data": "abcdex"}, r"new_classes: 'mean'.*model\.weights to .*margin too, or '"),
        ("margin", "cut", {}, r"cut/classes\.txt: 4 names for 6 classes; bring back"),
        ("margin", "hollow", {}, r"hollow/classes\.txt: 0 names for 6 classes; bring back"),
        ("margin", "empty", {}, "no checkpoint there"),
    ],
)  # fmt: skip
def test_a_head_of_other_classes_is_refused(folder, kind, source, sections, message):
    if source in ("nameless", "cut", "hollow"):
        shutil.copytree(folder / kind, folder / source, dirs_exist_ok=True)
        (folder / source / "classes.txt").write_text("" if source == "hollow" else "a\nb\nc\nd\n")
    if source == "nameless":
        (folder / source / "classes.txt").unlink()
    if isinstance(sections.get("data"), str):
        sections = {"data": renamed(folder, sections["data"], sections["data"])}
    (folder / "empty/checkpoints").mkdir(parents=True, exist_ok=True)
    model = {"model": {"weights": ""}} | sections
    with pytest.raises(UserError, match=message) as caught:
        started(folder, kind, str(folder / source), **model)
    assert "\n" not in str(caught.value)
