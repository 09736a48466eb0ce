"""Checkpoints of arcface_torch: any number of ranks in and out, training that goes on, and hostile files."""

import copy
import functools
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import tiny
from head_reference import dense_loss
from megaclass import ArcFace, HeadSGD, PartialFC, UserError, checkpoint
from megaclass.checkpoint.arcface_torch import (
    HEAD,
    HEAD_OPTIMIZER,
    OPTIMIZER,
    SCHEDULER,
    RankFiles,
    to_arcface_torch,
    to_dropin,
)
from megaclass.cli import main
from megaclass.export.weights import to_rank_files
from megaclass.parallel.groups import shard_range

CLASSES, DIM = 23, 4


class Theirs:
    """A loop as theirs is, dense and in one process: one SGD over the backbone and, last, the centres."""

    def __init__(self, classes: int = CLASSES, optimizer: Any = torch.optim.SGD) -> None:
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, DIM), nn.BatchNorm1d(DIM))
        self.centres = nn.Parameter(torch.randn(classes, DIM))
        options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        groups = [{"params": self.backbone.parameters()}, {"params": [self.centres]}]
        self.optimizer = optimizer(groups, lr=0.02, weight_decay=5e-4, **options)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.step = 0

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            images, labels = batch(self.step, len(self.centres))
            loss = dense_loss(self.backbone(images), labels, self.centres, ArcFace(scale=8.0))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            losses.append(float(loss.detach()))
        return losses

    def checkpoint(self, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
        """What one of ``ranks`` processes would save: its rows of the centres and of their momentum."""
        start, stop = shard_range(len(self.centres), rank, ranks)
        state = copy.deepcopy(self.optimizer.state_dict())
        last = len(list(self.backbone.parameters()))
        for name, value in state["state"].get(last, {}).items():
            if torch.is_tensor(value) and value.ndim == 2:
                state["state"][last][name] = value[start:stop].clone()
        return {
            "epoch": 1,
            "global_step": self.step,
            "state_dict_backbone": copy.deepcopy(self.backbone.state_dict()),
            "state_dict_softmax_fc": {"weight": self.centres.detach()[start:stop].clone()},
            "state_optimizer": state,
            "state_lr_scheduler": copy.deepcopy(self.schedule.state_dict()),
        }

    def save(self, folder: Path, ranks: int) -> Path:
        folder.mkdir(exist_ok=True)
        for rank in range(ranks):
            torch.save(self.checkpoint(rank, ranks), folder / f"checkpoint_gpu_{rank}.pt")
        return folder

    @property
    def momentum(self) -> Tensor:
        return self.optimizer.state[self.centres]["momentum_buffer"]


def batch(step: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.randint(classes, (8,), generator=generator)


def trained(classes: int = CLASSES, steps: int = 3) -> Theirs:
    theirs = Theirs(classes)
    theirs.train(steps)
    return theirs


assert_same = functools.partial(torch.testing.assert_close, rtol=0, atol=0)


# -- one checkpoint as a dict -----------------------------------------------------------------------------


def test_their_run_goes_on_with_our_head_and_back() -> None:
    """Steps 3 to 5 with our head and 6 to 8 with a dense SGD again: the losses of nine dense steps."""
    whole = Theirs().train(9)
    first = trained(steps=3)
    stored = to_dropin(first.checkpoint())

    backbone = Theirs().backbone
    head = PartialFC(CLASSES, DIM, margin=ArcFace(scale=8.0))
    opt = torch.optim.SGD(backbone.parameters(), lr=0.5, momentum=0.9, weight_decay=5e-4)
    head_opt = HeadSGD(head, lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    backbone.load_state_dict(stored["state_dict_backbone"])
    for part, key in zip((head, opt, head_opt, schedule), (HEAD, OPTIMIZER, HEAD_OPTIMIZER, SCHEDULER), strict=True):
        part.load_state_dict(stored[key])
    losses = []
    for step in range(3, 6):
        images, labels = batch(step, CLASSES)
        loss = head(backbone(images), labels)
        loss.backward()
        opt.step()
        head_opt.step()
        opt.zero_grad()
        schedule.step()
        head_opt.param_groups[0]["lr"] = schedule.get_last_lr()[0]
        losses.append(loss.item())
    assert losses == pytest.approx(whole[3:6], rel=1e-5)

    back = to_arcface_torch({
        "epoch": 1,
        "global_step": 6,
        "state_dict_backbone": backbone.state_dict(),
        HEAD: head.state_dict(),
        OPTIMIZER: opt.state_dict(),
        "state_lr_scheduler": schedule.state_dict(),
        HEAD_OPTIMIZER: head_opt.state_dict(),
    })  # fmt: skip
    last = Theirs()
    last.step = 6
    last.backbone.load_state_dict(back["state_dict_backbone"])
    last.centres.data.copy_(back[HEAD]["weight"])
    last.optimizer.load_state_dict(back[OPTIMIZER])
    last.schedule.load_state_dict(back["state_lr_scheduler"])
    assert last.train(3) == pytest.approx(whole[6:], rel=1e-5)


def test_momentum_that_was_not_kept_is_zero() -> None:
    untrained = Theirs().checkpoint()
    assert torch.equal(to_dropin(untrained)[HEAD_OPTIMIZER]["state"][0]["momentum_buffer"], torch.zeros(CLASSES, DIM))
    rowwise = to_dropin(trained().checkpoint())
    del rowwise[HEAD_OPTIMIZER]["state"][0]["momentum_buffer"]
    assert 4 not in to_arcface_torch(rowwise)[OPTIMIZER]["state"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[OPTIMIZER]["param_groups"][0].update(betas=(0.9, 0.999)), "do not fit one optimizer"),
        (lambda c: c.update({HEAD: None}), "not the checkpoint of a script with our head"),
    ],
)
def test_what_has_no_way_back_is_refused(change: Any, message: str) -> None:
    dropin = to_dropin(trained().checkpoint())
    change(dropin)
    with pytest.raises(UserError, match=message):
        to_arcface_torch(dropin)


# -- files, at any number of ranks ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["arcface_torch", "dropin"])
@pytest.mark.parametrize(("written", "wanted"), [(1, 3), (3, 2), (5, 5)])
def test_rows_survive_any_number_of_ranks(tmp_path: Path, written: int, wanted: int, layout: str) -> None:
    theirs = trained()
    source = theirs.save(tmp_path / "source", written)
    paths = to_rank_files(source, tmp_path / "output", ranks=wanted, layout=layout, which="latest")
    assert len(paths) == wanted
    files = RankFiles(tmp_path / "output", CLASSES)
    assert files.embedding_dim == DIM
    assert torch.equal(files.rows("weight"), theirs.centres) and torch.equal(files.rows("momentum"), theirs.momentum)
    for rank, path in enumerate(paths):
        expected = theirs.checkpoint(rank, wanted)
        expected = expected if layout == "arcface_torch" else to_dropin(expected)
        assert_same(torch.load(path, weights_only=True), expected)
    back = to_rank_files(paths[0].parent, tmp_path / "back", ranks=written, layout="arcface_torch", which="latest")
    for path in back:
        assert_same(torch.load(path, weights_only=True), torch.load(source / path.name, weights_only=True))


def test_the_lines_of_the_document_take_over_centres_and_momentum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[3] / "docs/tutorials/arcface_torch.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(from megaclass.checkpoint.arcface_torch .*?)^```", document, re.M | re.S)
    theirs = trained()
    theirs.save(tmp_path / "OLD", 3)
    monkeypatch.chdir(tmp_path)
    head = PartialFC(CLASSES, DIM, sample_rate=0.3)
    head_opt = HeadSGD(head, lr=0.1)
    exec(block, {"head": head, "head_opt": head_opt})
    assert torch.equal(head.weight, theirs.centres)
    assert torch.equal(head.shard.momentum.data, theirs.momentum)


def test_8_bit_rows_are_read_with_their_scales(tmp_path: Path) -> None:
    weight, scale = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8), torch.tensor([0.5, 2.0])
    torch.save({"weight": weight, "weight_scale": scale}, tmp_path / "checkpoint_gpu_0.pt")
    assert RankFiles(tmp_path).rows("weight").tolist() == [[0.5, -1.0], [6.0, 8.0]]


@pytest.mark.parametrize("storage", ["fp32", "int8_rowwise"])
def test_a_run_of_megaclass_becomes_their_checkpoint(told: Any, tmp_path: Path, storage: str) -> None:
    recipe = tiny.recipe(tmp_path, head={"scale": 16.0, "storage": storage})
    assert main(["train", recipe]) == 0
    said = told("export", "arcface_torch", tmp_path / "run", tmp_path / "out", "--ranks", "2")
    assert "2 files of ranks" in said and "no network for convnet, width 8, at 16 pixels" in said
    files = RankFiles(tmp_path / "out", tiny.CLASSES)
    stored = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))
    for name, found in (("weight", files.rows("weight")), ("momentum", files.rows("momentum"))):
        expected = torch.zeros(tiny.CLASSES, 16)  # row-wise storage keeps no momentum
        if f"head/{name}" in stored.sharded:
            expected = stored.rows(f"head/{name}").float()
        if f"head/{name}_scale" in stored.sharded:
            expected *= stored.rows(f"head/{name}_scale")[:, None]
        assert torch.equal(found, expected)
    # It must load where their script would load it.
    for rank in range(2):
        one = torch.load(tmp_path / "out" / f"checkpoint_gpu_{rank}.pt", weights_only=True)
        backbone = tiny.smooth(embedding_dim=16, image_size=tiny.SIZE, width=8)
        backbone.load_state_dict(one["state_dict_backbone"])
        centres = nn.Parameter(one[HEAD]["weight"])
        groups = [{"params": backbone.parameters()}, {"params": [centres]}]
        sgd = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
        sgd.load_state_dict(one[OPTIMIZER])
        assert torch.equal(sgd.state[centres]["momentum_buffer"], files.rows("momentum", 3 * rank, 3 * rank + 3))
        assert sgd.param_groups[0]["lr"] == stored.state["optimizer"]["param_groups"][0]["lr"]
        normalize(backbone(torch.randn(4, 3, tiny.SIZE, tiny.SIZE)) @ centres.T).sum().backward()
        sgd.step()
        assert one["global_step"] == 10


def test_a_run_starts_from_their_centres(tmp_path: Path) -> None:
    centres = torch.randn(tiny.CLASSES, 16)
    for rank, part in enumerate(centres.split([2, 2, 1, 1])):
        torch.save({HEAD: {"weight": part}}, tmp_path / f"checkpoint_gpu_{rank}.pt")
    weights = {"weights": str(tmp_path)}
    assert torch.equal(tiny.job(tmp_path, head=weights).head.weight, centres)
    with pytest.raises(UserError, match=r"head\.weights: .* 6 classes of 16 columns, and 6 of 24"):
        tiny.job(tmp_path, head=weights, model={"embedding_dim": 24})


# -- files from strangers ---------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def edit(path: Path, change: Any) -> None:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


def put(**head: Any) -> Any:
    return lambda checkpoint: checkpoint[HEAD].update(head)


FAULTS = {
    "missing": (lambda path: path.unlink(), "checkpoint_gpu_1.pt is missing"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "checkpoint_gpu_1.pt: not a PyTorch file"),
    "runs code": (lambda path: torch.save(Bomb(), path), "opened safely"),
    "backbone alone": (lambda path: torch.save({"conv1.weight": torch.ones(1)}, path), "no state_dict_softmax_fc"),
    "columns": (lambda path: edit(path, put(weight=torch.ones(8, 5))), "shape (8, 5), where (8, 4) would go with"),
    "one axis": (lambda path: edit(path, put(weight=torch.ones(8))), "centres of shape (8,)"),
    "integers": (lambda path: edit(path, put(weight=torch.ones(8, DIM).int())), "rows torch.int32 (8, 4)"),
    "sparse": (lambda path: edit(path, put(weight=torch.ones(8, DIM).to_sparse())), "dense"),
    "stretched": (lambda path: edit(path, put(weight=torch.ones(1, 1).expand(8, DIM))), "more than the file holds"),
    "scales": (
        lambda path: edit(path, put(weight=torch.ones(8, DIM).char(), weight_scale=torch.ones(3))),
        "scales torch.float32 (3,)",
    ),
    "another save": (lambda path: edit(path, lambda c: c.update(global_step=9)), "at the global steps 3, 9"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = trained().save(tmp_path / "source", 3)
    damage, message = FAULTS[fault]
    damage(folder / "checkpoint_gpu_1.pt")
    with pytest.raises(UserError) as caught:
        RankFiles(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_last_file_shows_against_the_classes(tmp_path: Path) -> None:
    folder = trained(classes=24).save(tmp_path / "source", 3)
    (folder / "checkpoint_gpu_2.pt").unlink()
    with pytest.raises(UserError, match="16 centres in 2 files, but 24 classes"):
        RankFiles(folder, 24)


def momentum_of(checkpoint: dict[str, Any]) -> Tensor:
    return checkpoint[OPTIMIZER]["state"][4]["momentum_buffer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[HEAD]["weight"][0].fill_(torch.nan), "weight is not finite"),
        (lambda c: momentum_of(c)[-1].fill_(torch.inf), "momentum is not finite"),
        (lambda c: c[OPTIMIZER]["state"][4].update(momentum_buffer=torch.ones(2, 2)), "one row a centre"),
        (lambda c: c.pop(OPTIMIZER), "not what arcface_torch writes"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    folder = trained().save(tmp_path / "source", 2)
    edit(folder / "checkpoint_gpu_1.pt", change)
    files = RankFiles(folder)
    with pytest.raises(UserError, match=message) as caught:
        files.rows("weight")
        files.rows("momentum")
    assert str(caught.value).startswith(str(folder / "checkpoint_gpu_1.pt"))
    files.rows("weight", 0, 5), files.rows("momentum", 0, 5)  # rank 0's rows are as good as ever


def test_adamw_gives_its_centres_but_no_momentum(tmp_path: Path) -> None:
    theirs = Theirs(optimizer=torch.optim.AdamW)
    theirs.train(1)
    files = RankFiles(theirs.save(tmp_path / "source", 1))
    assert torch.equal(files.rows("weight"), theirs.centres)
    with pytest.raises(UserError, match="AdamW"):
        files.rows("momentum")
