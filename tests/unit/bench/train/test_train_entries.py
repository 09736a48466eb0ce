"""Who takes turns in a case of `bench train`, and what their loops do."""

import pytest
import torch
from torch import nn

import fake_peer
from megaclass.bench.peers import LOOPS, pytorch_loop
from megaclass.bench.peers.arcface_torch_loop import NETWORKS
from megaclass.bench.old_train.cases import TrainCase, config_of, resolved
from megaclass.bench.old_train.peer import PeerTraining
from megaclass.bench.old_train.plan import planned
from megaclass.cli import parsing
from megaclass.cli.bench.train import options_of_train, settings_of
from megaclass.errors import UserError
from megaclass.models.registry import BACKBONES
from megaclass.parallel.groups import World

FACES = {"recipe": "faces_r50", "num_classes": 50, "global_batch_size": 8}
ALONE = World(0, 1, torch.device("cpu"))


def options(*words):
    parser = parsing.make_parser("megaclass bench train", "")
    options_of_train(parser)
    found, given = parsing.parse_with_settings(parser, ["--device", "cpu", *map(str, words)])
    found.settings = settings_of(given)
    return found


def settings(*words):
    (one,) = planned(options(*words))
    return [entry.changes.get("settings", {}) for entry in one.entries]


def test_values_of_a_setting_are_combined():
    found = settings("--set", "precision.channels_last=true,false", "--set", "optim.lr=0.5,1e-3")
    assert found == [
        {"precision.channels_last": layout, "optim.lr": rate}
        for layout in (True, False)
        for rate in (0.5, 0.001)
    ]


def test_one_at_a_time_begins_with_the_case_as_it_is():
    words = [
        "--set",
        "precision.channels_last=true,false",
        "--set",
        "data.accumulation=1,2,4",
        "--one-at-a-time",
    ]
    as_it_is = {"precision.channels_last": True, "data.accumulation": 1}
    assert settings(*words) == [
        as_it_is,
        as_it_is | {"precision.channels_last": False},
        as_it_is | {"data.accumulation": 2},
        as_it_is | {"data.accumulation": 4},
    ]
    # Settings of the case as it is stay.
    (first, *_) = settings("--optim.lr", "0.5", *words)
    assert first == {"optim.lr": 0.5} | as_it_is


def test_a_setting_changes_what_follows_from_it():
    (one,) = planned(options("--recipe", "faces_r50", "--set", "model.embedding_dim=128,256"))
    assert [entry.changes["embedding_dim"] for entry in one.entries] == [128, 256]


def test_each_of_them_has_a_key_of_its_own(tmp_path):
    root = fake_peer.write(tmp_path)
    words = [
        "--recipe",
        "faces_r50",
        "--set",
        "optim.lr=0.1,0.2",
        "--peer",
        "arcface_torch,pytorch",
        "--peer-path",
        root,
    ]
    (one,) = planned(options(*words))
    assert len(set(one.keys())) == len(one.entries) == 4
    assert [entry.implementation for entry in one.entries[2:]] == ["arcface_torch", "pytorch"]
    assert "settings" not in one.entries[2].changes and not one.entries[2].missing and one.entries[3].missing
    assert one.weight == 3 * planned(options("--recipe", "faces_r50"))[0].weight


def test_ranks_to_simulate_are_a_list():
    found = planned(options("--simulate-ranks", "1,2,8", "-b", "4"))
    assert [(one.case.simulate_ranks, one.case.global_batch_size) for one in found] == [
        (1, 4),
        (2, 8),
        (8, 32),
    ]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--set", "optim.lr"], "section.key=VALUE"),
        (["--set", "optim.lr="], "section.key=VALUE"),
        (["--set", "optim.lrr=1"], "optim.lr"),
        (["--set", "optim.lr=high"], "optim.lr: 'high'"),
        (["--set", "precision.channels_last=1"], "true or false"),
        (["--set", "data.accumulation=1.5"], "whole number"),
        (["--set", "data.accumulation=3", "-b", "4"], "data.accumulation"),
        (["--set", "schedule.milestones=0.1,0.2"], "list of numbers"),
        (["--set", "precision.compute=fp32"], "--dtype"),
        (["--set", "evaluate.task=none"], "evaluates nothing"),
        (["--set", "optim.lr=1", "--set", "optim.lr=2"], "given twice"),
        (["--set", "optim.lr=1", "--mode", "val", "-b", "1"], "--mode"),
        (["--set", "optim.lr=1,2", "-o", "report.json"], ".jsonl"),
        (["--one-at-a-time"], "--set"),
        (["--peer", "arcface_torch"], "--peer-path"),
        (["--peer", "tensorflow"], "pytorch"),
        (["--peer", "arcface_torch", "--peer-path", "nowhere"], "backbones/__init__.py"),
        (["--peer", "pytorch", "--peer-path", "."], "arcface_torch"),
        (["--peer", "pytorch", "--mode", "train_val", "-b", "1"], "--mode"),
    ],
)
def test_what_makes_no_sense(words, part):
    with pytest.raises(UserError) as caught:
        planned(options(*words))
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("peer", "change", "reason"),
    [
        ("arcface_torch", FACES, ""),
        ("arcface_torch", FACES | {"settings": {"head.m2": 0.0, "head.m3": 0.4}}, ""),
        ("arcface_torch", {}, "linear head"),
        ("arcface_torch", FACES | {"storage": "bf16"}, "fp32"),
        ("arcface_torch", FACES | {"simulate_ranks": 2}, "simulates no ranks"),
        ("arcface_torch", FACES | {"backbone": "resnet50"}, "no such backbone"),
        ("arcface_torch", FACES | {"settings": {"model.width": 32}}, "no such backbone"),
        ("arcface_torch", FACES | {"image_size": 96}, "112 px"),
        ("arcface_torch", FACES | {"world_size": 2, "parallelism": "data"}, "among the ranks"),
        ("arcface_torch", FACES | {"settings": {"head.m3": 0.4}}, "margin"),
        ("arcface_torch", FACES | {"settings": {"optim.name": "adamw"}}, "SGD"),
        (
            "arcface_torch",
            FACES | {"settings": {"model.checkpoint_activations": True}},
            "checkpoint_activations",
        ),
        ("pytorch", {"global_batch_size": 8}, ""),
        ("pytorch", FACES, "linear head"),
        ("pytorch", {"settings": {"augment.mixup": 0.2}}, "mixup"),
        ("pytorch", {"settings": {"data.accumulation": 2}}, "accumulation"),
        ("pytorch", {"settings": {"model.sync_norm": True}}, "sync_norm"),
    ],
)
def test_what_a_peer_cannot_do_has_a_reason(peer, change, reason):
    case = resolved(TrainCase(**change))
    found = LOOPS[peer].why_not(case, config_of(case))
    assert reason in found and bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("device", "precision", "theirs"),
    [("cpu", "bf16", "fp32"), ("cpu", "fp32", "fp32"), ("cuda", "bf16", "fp16"), ("cuda", "fp16", "fp16"),
     ("cuda", "tf32", "tf32")],
)  # fmt: skip
def test_arcface_torch_computes_as_its_script_does(device, precision, theirs):
    case = TrainCase(device=device, precision=precision, tf32=precision == "bf16")
    assert LOOPS["arcface_torch"].parameters(case) == {"precision": theirs, "tf32": False}
    assert LOOPS["pytorch"].parameters(case) == {}


def test_backbones_of_arcface_torch_are_ours_under_other_names():
    for ours, theirs in NETWORKS.items():
        assert BACKBONES[ours] is BACKBONES[theirs]


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 10)

    def forward(self, images):
        return self.fc(images.flatten(1))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-2)])
def test_the_plain_loop_takes_a_step_of_sgd(monkeypatch, precision, tolerance):
    """Against cross-entropy and SGD's formula, written down."""
    smoothing, decay = 0.1, 0.01
    changed = {
        "head.label_smoothing": smoothing,
        "optim.weight_decay": decay,
        "schedule.warmup": 0.0,
        "schedule.warmup_epochs": 0.0,
        "optim.lr_batch_size": 0,
        "optim.lr": 0.1,
    }
    case = TrainCase(backbone="resnet18", num_classes=10, image_size=16, global_batch_size=8, iterations=2,
                     precision=precision, settings=changed)  # fmt: skip
    case = resolved(case)
    network = OneLayer()
    monkeypatch.setattr(pytorch_loop, "_network", lambda *what: (network, "one layer"))
    training = PeerTraining(pytorch_loop, case, ALONE, {})
    before = [p.detach().clone() for p in network.parameters()]
    images, labels = next(training._batches)

    targets = torch.full((8, 10), smoothing / 10).scatter_add(
        1, labels[:, None], torch.full((8, 1), 1 - smoothing)
    )
    logits = images.flatten(1) @ before[0].T + before[1]
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    error = (logits.softmax(1) - targets) / 8
    gradients = [error.T @ images.flatten(1), error.sum(0)]
    training._take((images, labels))
    assert training._loss == pytest.approx(expected.item(), rel=tolerance)
    for was, gradient, now in zip(before, gradients, network.parameters(), strict=True):
        torch.testing.assert_close(now, was - 0.1 * (gradient + decay * was), rtol=0, atol=tolerance)
    assert (
        images.is_contiguous(memory_format=torch.channels_last) and training.facts()["network"] == "one layer"
    )


def test_a_loss_that_is_not_finite_ends_a_peer(monkeypatch):
    network = OneLayer()
    network.fc.weight.data.fill_(float("nan"))
    monkeypatch.setattr(pytorch_loop, "_network", lambda *what: (network, "one layer"))
    case = resolved(
        TrainCase(backbone="resnet18", num_classes=10, image_size=16, global_batch_size=8, iterations=1)
    )
    with pytest.raises(ArithmeticError, match=r"optim\.lr"):
        PeerTraining(pytorch_loop, case, ALONE, {}).epoch(lambda done: None)


def test_a_peer_is_given_our_labels():
    from megaclass.bench.old_train.contender import Training

    case = resolved(
        TrainCase(backbone="resnet18", num_classes=10, image_size=16, global_batch_size=8, iterations=2)
    )
    ours = [batch.labels for batch in Training(case, ALONE)._batches]
    theirs = [labels for _, labels in PeerTraining(pytorch_loop, case, ALONE, {})._batches]
    assert len(ours) == len(theirs) == 4 and all(map(torch.equal, ours, theirs))
