"""`megaclass bench train`: what a case trains, who takes turns, and the command as a user meets it."""

import os
from dataclasses import replace

import pytest
import torch
from torch import nn

import fake_peer
import tiny
from bench_words import cases, on_cpu, planned
from megaclass.bench.case import benchmark_of
from megaclass.bench.head import HeadCase
from megaclass.bench.peers import LOOPS, arcface_torch, pytorch
from megaclass.bench.recipes import config_of
from megaclass.bench.sweep import keys_of
from megaclass.bench.sweep import planned as as_planned
from megaclass.bench.train import TrainCase, step_flops
from megaclass.bench.training import Training
from megaclass.cli import main
from megaclass.errors import UserError
from megaclass.models.registry import BACKBONES
from megaclass.parallel.groups import World
from megaclass.results.rows import read_rows

ALONE = World(0, 1, torch.device("cpu"))
FACES = {"recipe": "faces_r50", "num_classes": 50, "global_batch_size": 8}
TINY = {"recipe": "glyphs", "image_size": 16, "num_classes": 50, "global_batch_size": 4, "iterations": 2}


def case_of(**fields):
    return on_cpu(TrainCase(**fields))


# -- what a case trains ---------------------------------------------------------------------------------


def test_what_a_case_leaves_out_is_as_its_recipe_says():
    case = case_of(recipe="faces_r50")
    assert (case.backbone, case.embedding_dim, case.global_batch_size) == ("iresnet50", 512, 1024)
    assert case.num_classes == 100_000 and case.sample_rate == 1.0 and case.parallelism == "model"
    photos = case_of()
    assert photos.num_classes == 1000 and photos.embedding_dim == 2048 and photos.iterations == 10
    assert (on_cpu(case), on_cpu(photos)) == (case, photos)


def test_what_a_case_says_goes_before_its_recipe():
    settings = {"optim.lr": 0.5, "model.dropout": 0.25}
    case = TrainCase(recipe="faces_r50", backbone="iresnet18", num_classes=5, image_size=32, global_batch_size=8,
                     precision="bf16", sample_rate=0.5, parallelism="data", storage="bf16", seed=3, device="cpu",
                     settings=settings)  # fmt: skip
    config = config_of(case)
    assert config.data.source == "synthetic" and config.data.num_classes == 5 and config.data.image_size == 32
    assert config.model.name == "iresnet18" and config.model.dropout == 0.25 and config.optim.lr == 0.5
    head = config.head
    assert (head.sample_rate, head.parallelism, head.storage) == (0.5, "data", "bf16")
    assert config.precision.compute == head.precision == "bf16" and not config.precision.tf32
    assert config.run.seed == 3 and config.evaluate.task == "none"
    assert config_of(replace(case, precision="fp16", tf32=True)).precision.tf32


def test_a_recipe_of_ones_own_has_the_classes_of_its_data(tmp_path):
    tiny.write_records(tmp_path / "set" / "train")
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[evaluate]\ntask = "none"\n'
        + f'[run]\nseed = 7\n[data]\nsource = "records"\npath = "{tmp_path / "set" / "train"}"\n'
    )
    case = case_of(recipe=str(mine))
    assert case.num_classes == 6 and case.data == "synthetic"
    assert config_of(case).run.seed == 0  # as the case says
    assert case_of(recipe=str(mine), num_classes=9).num_classes == 9
    key, digest = keys_of(as_planned(case)), case.parameters()["recipe_digest"]
    mine.write_text(mine.read_text() + "[optim]\nlr = 0.2\n")
    assert keys_of(as_planned(case)) != key and len(digest) == 12  # another content is another case

    (own,) = cases("train", "--data-root", tmp_path / "set")
    assert own.num_classes == 6 and config_of(own).data.source == "records"
    assert config_of(own).data.path == str(tmp_path / "set" / "train") and on_cpu(own) == own
    with pytest.raises(UserError, match="has 6 classes"):
        cases("train", "--data-root", tmp_path / "set", "--num-classes", "7")


def test_the_flags_of_nvidias_script_mean_what_they_mean_there():
    words = "-n 1,4,8 -b 512 --dtype float16 -i 500 -e 3 -w 1 --num-examples 32000 --mode train"
    found = cases("train", *words.split())
    assert [(case.world_size, case.global_batch_size) for case in found] == [(1, 512), (4, 2048), (8, 4096)]
    assert {(case.precision, case.iterations, case.epochs, case.warmup) for case in found} == {("fp16", 500, 2, 1)}
    assert {(case.num_examples, case.recipe, case.data) for case in found} == {
        (32000, "resnet50_imagenet", "synthetic")
    }
    assert step_flops(found[2]) == 8 * step_flops(found[0])  # weak scaling: as much for each device
    dtypes = cases("train", "--dtype", "float32,tf32,float16,bfloat16")
    assert [case.precision for case in dtypes] == ["fp32", "tf32", "fp16", "bf16"]
    found = cases("train", "-n", "1,2", "--global-batch-size", "64")  # strong scaling
    assert [(case.world_size, case.global_batch_size) for case in found] == [(1, 64), (2, 64)]
    found = cases("train", "--simulate-ranks", "1,2,8", "-b", "4")
    assert [(case.simulate_ranks, case.global_batch_size) for case in found] == [(1, 4), (2, 8), (8, 32)]
    (case,) = cases("train", "--mode", "val", "-b", "2", "--num-classes", "10")
    assert case.benchmark == "infer" and case.num_classes == 10 and case.batch_size == 2
    both = cases("train", "--mode", "train_val", "-b", "2,4")
    assert [case.benchmark for case in both] == ["train", "train", "infer", "infer"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--backbone", "iresnet51"], "iresnet50"),
        (["-e", "1", "-w", "1"], "--epochs"),
        (["-b", "8", "--global-batch-size", "8"], "--batch-size"),
        (["--mode", "val"], "--batch-size"),
        (["--mode", "val", "-b", "2", "-n", "2"], "one device"),
        (["--evaluate.task", "verification"], "evaluates nothing"),
        (["--sample-rate", "2"], "--sample-rate: 2"),
        (["--data.image_size", "32"], "--image-size"),
        (["--set", "optim.lr"], "section.key=VALUE"),
        (["--set", "optim.lrr=1"], "optim.lr"),
        (["--set", "optim.lr=high"], "optim.lr: 'high'"),
        (["--set", "data.accumulation=3", "-b", "4"], "data.accumulation"),
        (["--set", "precision.compute=fp32"], "--dtype"),
        (["--set", "optim.lr=1", "--mode", "val", "-b", "1"], "--mode"),
        (["--set", "optim.lr=1,2", "-o", "report.json"], ".jsonl"),
        (["--one-at-a-time"], "--set"),
        (["--peer", "arcface_torch", "--peer-path", "nowhere"], "backbones/__init__.py"),
        (["--peer", "pytorch", "--mode", "train_val", "-b", "1"], "--mode"),
    ],
)
def test_what_makes_no_sense(words, part):
    with pytest.raises(UserError) as caught:
        planned("train", *words)
    assert part in str(caught.value) and "\n" not in str(caught.value)


# -- who takes turns ------------------------------------------------------------------------------------


def settings(*words):
    (one,) = planned("train", *words)
    return [who.changes.get("settings", {}) for who in one.implementations]


def test_values_of_a_setting_are_combined_or_changed_one_at_a_time():
    found = settings("--set", "precision.channels_last=true,false", "--set", "optim.lr=0.5,1e-3")
    assert found == [
        {"precision.channels_last": layout, "optim.lr": rate} for layout in (True, False) for rate in (0.5, 0.001)
    ]
    words = ["--set", "precision.channels_last=true,false", "--set", "data.accumulation=1,2,4"]
    as_it_is = {"precision.channels_last": True, "data.accumulation": 1}
    found = settings("--optim.lr", "0.5", *words, "--one-at-a-time")
    changes = [{}, {"precision.channels_last": False}, {"data.accumulation": 2}, {"data.accumulation": 4}]
    assert found == [{"optim.lr": 0.5} | as_it_is | change for change in changes]  # settings of the case stay
    (one,) = planned("train", "--recipe", "faces_r50", "--set", "model.embedding_dim=128,256")
    assert [who.changes["embedding_dim"] for who in one.implementations] == [128, 256]  # what follows from it


@pytest.mark.parametrize(
    ("peer", "change", "reason"),
    [
        ("arcface_torch", FACES, ""),
        ("arcface_torch", FACES | {"settings": {"head.m2": 0.0, "head.m3": 0.4}}, ""),
        ("arcface_torch", {}, "linear head"),
        ("arcface_torch", FACES | {"storage": "bf16"}, "fp32"),
        ("arcface_torch", FACES | {"simulate_ranks": 2}, "simulates no ranks"),
        ("arcface_torch", FACES | {"backbone": "resnet50"}, "no such backbone"),
        ("arcface_torch", FACES | {"image_size": 96}, "112 px"),
        ("arcface_torch", FACES | {"world_size": 2, "parallelism": "data"}, "among the ranks"),
        ("arcface_torch", FACES | {"settings": {"head.m3": 0.4}}, "margin"),
        ("arcface_torch", FACES | {"settings": {"optim.name": "adamw"}}, "SGD"),
        ("arcface_torch", FACES | {"settings": {"model.checkpoint_activations": True}}, "checkpoint_activations"),
        ("pytorch", {"global_batch_size": 8}, ""),
        ("pytorch", FACES, "linear head"),
        ("pytorch", {"settings": {"augment.mixup": 0.2}}, "mixup"),
        ("pytorch", {"settings": {"data.accumulation": 2}}, "accumulation"),
    ],
)  # fmt: skip
def test_what_a_peer_cannot_do_has_a_reason(peer, change, reason):
    case = case_of(**change)
    found = LOOPS[peer].why_not(case, config_of(case))
    assert reason in found and bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("device", "precision", "theirs", "heads"),
    [("cpu", "bf16", "fp32", "fp32"), ("cuda", "bf16", "fp16", "fp16"), ("cuda", "tf32", "tf32", "fp32")],
)
def test_arcface_torch_computes_as_its_script_does(device, precision, theirs, heads):
    case = TrainCase(device=device, precision=precision, tf32=precision == "bf16")
    assert arcface_torch.Loop.changes(case) == {"precision": theirs, "tf32": False}
    head = {"precision": heads, "storage": "fp32", "kernels": "torch", "recompute": "auto", "sub_centres": 1}
    assert arcface_torch.head_changes(HeadCase(device=device, precision=precision, storage="bf16")) == head
    assert all(BACKBONES[ours] is BACKBONES[name] for ours, name in arcface_torch.NETWORKS.items())


# -- what takes a step ----------------------------------------------------------------------------------


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 10)

    def forward(self, images):
        return self.fc(images.flatten(1))


@pytest.fixture
def plain(monkeypatch):
    """A plain PyTorch loop of one layer, and that layer."""

    def make(**changes):
        case = case_of(backbone="resnet18", num_classes=10, image_size=16, global_batch_size=8, iterations=2, **changes)
        network = OneLayer()
        monkeypatch.setattr(pytorch, "_network", lambda *what: (network, "one layer"))
        return pytorch.Loop(case, config_of(case), ALONE, {}), network

    return make


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-2)])
def test_the_plain_loop_takes_a_step_of_sgd(plain, precision, tolerance):
    """Against cross-entropy and SGD's formula, written down."""
    smoothing, decay = 0.1, 0.01
    changed = {"head.label_smoothing": smoothing, "optim.weight_decay": decay, "schedule.warmup": 0.0,
               "schedule.warmup_epochs": 0.0, "optim.lr_batch_size": 0, "optim.lr": 0.1}  # fmt: skip
    training, network = plain(precision=precision, settings=changed)
    before = [p.detach().clone() for p in network.parameters()]
    images, labels = next(training.batches)

    ones = torch.full((8, 1), 1 - smoothing)
    targets = torch.full((8, 10), smoothing / 10).scatter_add(1, labels[:, None], ones)
    logits = images.flatten(1) @ before[0].T + before[1]
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    error = (logits.softmax(1) - targets) / 8
    gradients = [error.T @ images.flatten(1), error.sum(0)]
    training.take((images, labels))
    assert training.loss == pytest.approx(expected.item(), rel=tolerance)
    for was, gradient, now in zip(before, gradients, network.parameters(), strict=True):
        torch.testing.assert_close(now, was - 0.1 * (gradient + decay * was), rtol=0, atol=tolerance)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert training.facts()["network"] == "one layer"


def test_a_peer_is_given_our_labels_and_ends_where_its_loss_is_not_finite(plain):
    theirs, _ = plain()
    labels = [labels for _, labels in theirs.batches]
    ours = [batch.labels for batch in Training(theirs.case, theirs.config, ALONE)._batches]
    assert len(ours) == len(labels) == 4 and all(map(torch.equal, ours, labels))
    again, broken = plain()
    broken.fc.weight.data.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match=r"optim\.lr"):
        again.turn(0)


@pytest.mark.parametrize(("parallelism", "margin"), [("model", "combined"), ("data", "combined"), ("model", "adaface")])
def test_one_rank_of_several(parallelism, margin):
    whole = {"global_batch_size": 16, "simulate_ranks": 4, "sample_rate": 0.5, "parallelism": parallelism}
    case = case_of(**TINY | whole, settings={"head.margin": margin})
    training = Training(case, config_of(case), ALONE)
    turns = [[training.turn(index)] for index in range(2)]
    assert training.facts()["collectives"] == "none" and training.facts()["kernels"] == "torch"
    row = benchmark_of(case).measures("megaclass", case, turns, [{"limit_flops_per_second": 1e12}])
    assert row["samples_per_second"] == pytest.approx(16 / row["step_ms"]["p50"] * 1000, rel=1e-3)
    assert row["rates"]["total"] <= row["rates"]["compute"] and row["result"]["final_loss"] > 0
    assert row["work"]["flops"] == pytest.approx(step_flops(replace(case, simulate_ranks=1)) / 4)
    assert "simulated ranks 4" in case.text


def test_a_step_that_is_left_out_fails_the_case():
    case = case_of(**TINY, settings={"optim.lr": 1e30, "optim.clip_grad_norm": 0.0})
    training = Training(case, config_of(case), ALONE)
    with pytest.raises(ArithmeticError, match=r"not finite.*optim\.lr"):
        for index in range(3):
            training.turn(index)


# -- the command ----------------------------------------------------------------------------------------


def bench(*words):
    return main(["bench", "train", *map(str, words)])


@pytest.mark.dist
def test_two_processes_beside_two_of_a_peers_loop(tmp_path, capsys):
    root = fake_peer.write(tmp_path / "peer")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    words = ["--recipe", "faces_r50", "--backbone", "mbf", "--num-classes", 50, "-b", 4, "-i", 1, "-e", 3,
             "--dtype", "bfloat16", "--device", "cpu", "--threads", 1, "-n", 2, "--peer", "arcface_torch,pytorch",
             "--peer-path", root, "-o", "rows.jsonl"]  # fmt: skip
    assert bench(*words) == 0
    rows = read_rows("rows.jsonl")
    assert [row.implementation for row in rows] == ["megaclass", "arcface_torch", "pytorch"]
    assert len({row.key for row in rows}) == 3
    ours, peer, plain = rows
    assert (ours.status, peer.status) == ("ok", "ok"), (ours.reason, peer.reason)
    assert plain.status == "skipped" and "linear head" in plain.reason
    assert ours.group == peer.group and len(ours.samples_ms) == len(peer.samples_ms) == 2
    assert (ours.case["precision"], peer.case["precision"]) == ("bf16", "fp32")
    assert peer.case["malloc"] == "tuned" and peer.environment["variables"]["MALLOC_MMAP_MAX_"] == "0"
    assert 0 < peer.work["flops"] < ours.work["flops"]  # three products of a class, ours takes four
    assert 0 < ours.work["flops_per_second"] < ours.work["limit_flops_per_second"]
    assert ours.result["final_loss"] > 0 and peer.result["final_loss"] > 0
    assert len(ours.epochs) == 2 and ours.rates["total"] <= ours.rates["compute"]
    assert ours.memory_mb["process"] > 0 and ours.memory_mb["driver"] is None
    assert ours.case["global_batch_size"] == 8 and ours.case["collectives"] == "included"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before  # no byte code either
    said = capsys.readouterr().out
    assert "times as fast row 1 (megaclass) is" in " ".join(said.split()) and "left out" not in said

    assert bench(*words) == 0  # once more: nothing to do
    assert read_rows("rows.jsonl") == rows and "1 of 1 cases are in" in capsys.readouterr().out


@pytest.mark.process
def test_a_report_in_nvidias_shape_of_images_of_ones_own(tmp_path, monkeypatch):
    tiny.write_records(tmp_path / "data" / "train")
    words = "--recipe glyphs --image-size 16 -b 4 -i 2 --dtype float32 --device cpu"
    assert bench(*words.split(), "--data-root", tmp_path / "data", "-o", "report.json") == 0
    (row,) = read_rows("report.jsonl")
    assert row.status == "ok", row.reason
    assert row.case["num_classes"] == 6 and row.case["data"] == str(tmp_path / "data")
    assert '"train.ips"' in (tmp_path / "report.json").read_text()
    os.truncate("report.json", 0)
    assert bench(*words.split(), "-o", "report.json") == 2  # somebody else's by now
