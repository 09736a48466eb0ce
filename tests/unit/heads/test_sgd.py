"""HeadSGD and the head's state as torch users meet them, the bound on rows left out, and debts that are paid once."""

import copy
import dataclasses
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from head_reference import Case, dense_loss, relative_error, train_ours
from megaclass import HeadSGD, PartialFC, UserError
from megaclass.heads import shard
from megaclass.heads.margins import CosFace, Margin
from megaclass.heads.storage import STORAGES, Rows

CLASSES, DIM, BATCH = 200, 16, 8


def step_of(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(BATCH, DIM, generator=generator),
        torch.randint(0, CLASSES, (BATCH,), generator=generator),
    )


def make(storage: str = "fp32", sample_rate: float = 0.3) -> tuple[PartialFC, HeadSGD]:
    head = PartialFC(CLASSES, DIM, storage=storage, sample_rate=sample_rate)
    return head, HeadSGD(head, lr=0.05)


def train(head: PartialFC, optimizer: HeadSGD, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = head(*step_of(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def tables(head: PartialFC) -> list[Tensor]:
    """What is stored, bit for bit, with every row up to date."""
    head.shard.catch_up()
    momentum = head.shard.momentum
    return [*head.shard.centres.tensors.values(), *(momentum.tensors.values() if momentum else ())]


def copies(head: PartialFC) -> list[Tensor]:
    return [table.clone() for table in tables(head)]


def alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


# -- the optimizer ------------------------------------------------------------------------------------


def scaled_steps(head: PartialFC, optimizer: HeadSGD, backbone: torch.nn.Module, factor: float = 1.0) -> None:
    """A step of a loop with a GradScaler and another optimizer."""
    embeddings, labels = step_of(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    other = torch.optim.SGD(backbone.parameters(), lr=0.1)
    scaler.scale(head(backbone(embeddings * factor), labels)).backward()
    scaler.step(other)
    scaler.step(optimizer)
    scaler.update()


def identity() -> torch.nn.Module:
    backbone = torch.nn.Linear(DIM, DIM, bias=False)
    with torch.no_grad():
        backbone.weight.copy_(torch.eye(DIM))
    return backbone


def test_grad_scaler_and_scheduler_drive_it() -> None:
    (plain, plain_optimizer), (scaled, scaled_optimizer) = make(), make()
    scheduler = torch.optim.lr_scheduler.StepLR(scaled_optimizer, step_size=1, gamma=0.5)
    train(plain, plain_optimizer, range(1))
    scaled_steps(scaled, scaled_optimizer, identity())
    scheduler.step()
    torch.testing.assert_close(scaled.weight, plain.weight, rtol=1e-5, atol=1e-7)
    assert scaled_optimizer.param_groups[0]["lr"] == 0.025


def test_grad_scaler_skips_a_step_of_infinite_embeddings() -> None:
    head, optimizer = make(sample_rate=1.0)
    before = copies(head)
    scaled_steps(head, optimizer, identity(), float("inf"))
    assert alike(tables(head), before)


def test_unscaling_the_head_is_refused() -> None:
    head, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(head(*step_of(0))).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(UserError, match="unscale_"):
        scaler.step(optimizer)


def test_zero_grad_drops_what_was_not_stepped_and_the_weight_gets_no_dense_gradient() -> None:
    head, optimizer = make()
    before = copies(head)
    head(*step_of(0)).backward()
    assert head.weight.grad is None
    optimizer.zero_grad()
    optimizer.step()
    assert alike(tables(head), before)


def test_a_forgotten_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaclass.heads.partial_fc._MAX_PENDING", 3)
    head = PartialFC(CLASSES, DIM)
    with pytest.raises(UserError, match="HeadSGD"):
        for step in range(5):
            head(*step_of(step)).backward()


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    with pytest.raises(UserError, match=rf"label {label} is outside"):
        make()[0](torch.randn(1, DIM), torch.tensor([label]))


def test_labels_outside_the_drawn_sample_are_refused() -> None:
    head, optimizer = make(sample_rate=0.05)
    head.draw(torch.arange(4))
    optimizer.zero_grad()  # keeps what was just drawn
    with pytest.raises(UserError, match="not in the sample"):
        head(torch.randn(4, DIM), torch.tensor([150, 151, 152, 153]))


@pytest.mark.parametrize(
    "wrong", [{"num_classes": 0}, {"sample_rate": 0.0}, {"parallelism": "x"}, {"precision": "fp8"}], ids=str
)
def test_refuses_what_makes_no_sense(wrong: dict) -> None:
    with pytest.raises(ValueError):
        PartialFC(**{"num_classes": 5, "embedding_dim": 4, **wrong})
    with pytest.raises(TypeError, match="takes the head itself"):
        HeadSGD(make()[0].parameters(), lr=0.1)


def test_one_class_has_no_loss() -> None:
    head = PartialFC(1, DIM)
    loss = head(torch.randn(2, DIM, requires_grad=True), torch.zeros(2, dtype=torch.int64))
    loss.backward()
    HeadSGD(head).step()
    assert loss.item() == 0.0 and torch.isfinite(head.weight).all()


@pytest.mark.parametrize("recompute", ["never", "always"])
@pytest.mark.parametrize(("margin", "sign"), [(CosFace(margin=0.0), 1.0), (CosFace(filter_threshold=-1.0), -1.0)])
def test_a_target_far_from_all_others_leaves_the_centres_finite(recompute: str, margin: Margin, sign: float) -> None:
    head = PartialFC(2, 8, margin=margin, recompute=recompute)
    with torch.no_grad():
        head.weight[1] = -head.weight[0]
    before = head.centres()
    optimizer = HeadSGD(head, lr=0.1, weight_decay=0.0)
    # Its share of the others is below e^-104, or none is left in the sum.
    head(sign * before, torch.arange(2)).backward()
    optimizer.step()
    torch.testing.assert_close(head.centres(), before)


def test_a_loss_that_is_kept_holds_no_exponentials() -> None:
    head = PartialFC(1000, 128)
    optimizer = HeadSGD(head, lr=0.1)
    for _ in range(3):
        loss = head(torch.randn(32, 128, requires_grad=True), torch.arange(32))
        loss.backward()  # while the next step scores, this loss is still there
        kept = weakref.ref(head.pending[-1].kept)
        optimizer.step()
        assert kept() is None


def test_small_tiles_change_nothing() -> None:
    case = Case(num_classes=700, sample_rate=0.5, steps=3)
    one, many = train_ours(case), train_ours(dataclasses.replace(case, tile_mb=1e-6))
    torch.testing.assert_close(one.centres, many.centres, rtol=1e-5, atol=1e-6)


# -- rows that steps left out -------------------------------------------------------------------------

LOOKS: dict[str, Callable] = {
    "state_dict": lambda head, optimizer: head.state_dict(),
    "optimizer.state_dict": lambda head, optimizer: optimizer.state_dict(),
    "deepcopy": lambda head, optimizer: copy.deepcopy(head),
    "cpu": lambda head, optimizer: head.cpu(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_in_mid_step_changes_nothing(look: str) -> None:
    results = []
    for looks in (False, True):
        head, optimizer = make()
        for step in range(12):
            embeddings, labels = step_of(step)
            head.draw(labels)
            if looks and step % 3 == 0:
                LOOKS[look](head, optimizer)
            head(embeddings, labels).backward()
            if looks and step % 3 == 1:
                LOOKS[look](head, optimizer)
            optimizer.step()
        results.append(tables(head))
    for plain, looked in zip(*results, strict=True):
        assert relative_error(looked, plain.double()) < 1e-4  # a debt paid twice: 7e-2


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "own samples"])
@pytest.mark.parametrize("poisoned", [(), (0, 5, 6, 7, 13, 24)], ids=["finite", "skips"])
def test_long_sampled_runs_match_dense_sgd(
    monkeypatch: pytest.MonkeyPatch, drawn: bool, poisoned: tuple[int, ...]
) -> None:
    """Rows that owe much, a table of few ages, samples of the micro-batches joined, and steps left out."""
    monkeypatch.setattr(shard, "AGE_LIMIT", 7)
    head = PartialFC(60, 8, sample_rate=0.15)
    head.shard.centres.put(slice(None), head.centres() * 20)
    optimizer = HeadSGD(head, weight_decay=5e-2)
    dense = head.centres().double().requires_grad_()
    reference = torch.optim.SGD([dense], momentum=0.9, weight_decay=5e-2)
    for step in range(25):
        generator = torch.Generator().manual_seed(step)
        optimizer.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = 0.02 * (1 + step % 3)
        parts = [(torch.randn(4, 8, generator=generator), torch.randint(60, (4,), generator=generator)) for _ in "ab"]
        if drawn:
            head.draw(torch.cat([labels for _, labels in parts]))
        for embeddings, labels in parts:
            factor = float("nan") if step in poisoned else 1.0
            (head(embeddings * factor, labels) / 2).backward()
        if step not in poisoned:
            reference.zero_grad()
            for (embeddings, labels), batch in zip(parts, head.pending, strict=True):
                (dense_loss(embeddings, labels, dense, head.margin, batch.active.rows_N) / 2).backward()
            reference.step()
        optimizer.step()
    optimizer.catch_up()
    assert relative_error(head.centres(), dense.detach()) < 1e-5
    assert relative_error(head.shard.momentum.fp32(), reference.state[dense]["momentum_buffer"]) < 1e-5


def test_a_late_backward_pays_no_debt_twice() -> None:
    head, optimizer = make()
    train(head, optimizer, range(6))
    first, second = (head(*step_of(seed)) for seed in (6, 7))
    first.backward()
    optimizer.step()
    second.backward()
    optimizer.step()
    optimizer.catch_up()
    assert head.shard.steps == 8 and torch.isfinite(head.centres()).all()


def test_a_second_optimizer_begins_where_the_first_ended() -> None:
    head, optimizer = make()
    train(head, optimizer, range(8))
    twin = copy.deepcopy(head)
    HeadSGD(head, lr=0.05)
    assert torch.equal(head.centres(), twin.centres()) and not head.shard.momentum.data.any()


# -- state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_state_dicts_restore_the_bits_and_owe_nothing(storage: str) -> None:
    head, optimizer = make(storage)
    train(head, optimizer, range(7))
    stored, stored_optimizer = copy.deepcopy(head.state_dict()), copy.deepcopy(optimizer.state_dict())
    assert torch.equal(stored["weight"], tables(head)[0])
    twin, twin_optimizer = make(storage)
    twin.load_state_dict(stored)
    twin_optimizer.load_state_dict(stored_optimizer)
    assert train(head, optimizer, range(7, 12)) == train(twin, twin_optimizer, range(7, 12))
    assert alike(tables(head), tables(twin))
    head.load_state_dict(stored)
    assert torch.equal(tables(head)[0], stored["weight"])


@pytest.mark.parametrize("after", ["fp32", "bf16"])
@pytest.mark.parametrize("before", [*STORAGES, "int8"])
def test_momentum_is_taken_from_any_storage(before: str, after: str) -> None:
    """From 8 bits too, in which earlier versions kept it."""
    buffer = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0)) * 1e-3
    dtype = STORAGES.get(before, STORAGES["int8_rowwise"]).dtype
    rows = Rows.zeros(CLASSES, DIM, dtype, torch.device("cpu"))
    rows.put(slice(None), buffer)
    head, optimizer = make(after)
    stored = optimizer.state_dict()
    scale = {} if rows.scale is None else {"momentum_scale": rows.scale}
    own = {} if before == "int8_rowwise" else {"momentum_buffer": rows.data, **scale}
    train(head, optimizer, range(2))
    optimizer.load_state_dict({**stored, "state": {0: {**own, "step": 7}}})
    expected = buffer if own else torch.zeros(CLASSES, DIM)
    assert head.shard.momentum is not None and head.shard.steps == 7
    assert (head.shard.momentum.fp32() - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("storage", STORAGES)
def test_centres_of_any_storage_are_taken(storage: str) -> None:
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    head, _ = make(storage)
    head.load_state_dict({"weight": centres})  # as arcface_torch stores them
    tolerance = {"fp32": 0, "bf16": 2**-8, "int8": 2**-6}[storage.partition("_")[0]]
    assert (head.centres() - centres).abs().max() <= tolerance * centres.abs().max()
    for other in STORAGES:
        taker, _ = make(other)
        taker.load_state_dict(head.state_dict())
        assert (taker.centres() - centres).abs().max() <= 2**-5 * centres.abs().max()


def test_a_state_of_another_shape_is_refused() -> None:
    head, optimizer = make()
    train(head, optimizer, range(2))
    for rows, columns in ((50, DIM), (CLASSES, 1)):
        stored = copy.deepcopy(optimizer.state_dict())
        stored["state"][0]["momentum_buffer"] = torch.zeros(rows, columns)
        with pytest.raises(UserError, match="momentum_buffer"):
            optimizer.load_state_dict(stored)
    eight_bits = make("int8_rowwise")[0].weight.data
    wrong_scales = torch.ones(CLASSES, dtype=torch.int64)
    for bad in ({}, {"weight_scale": torch.ones(1)}, {"weight_scale": wrong_scales}):
        with pytest.raises(UserError, match="scales"):
            head.load_state_dict({"weight": eight_bits, **bad})
    with pytest.raises(UserError, match="int64"):
        head.load_state_dict({"weight": torch.zeros(CLASSES, DIM, dtype=torch.int64)})


def test_the_storage_is_not_changed_by_moving_it() -> None:
    for storage, change in (("fp32", "half"), ("bf16", "float"), ("int8_rowwise", "half")):
        head, _ = make(storage)
        with pytest.raises(TypeError, match="storage"):
            getattr(head, change)()
    head, _ = make("bf16")
    assert head.cpu() is head


@pytest.mark.parametrize("storage", ["fp32", "int8_rowwise"])
def test_a_copy_is_a_head_of_its_own(storage: str) -> None:
    head, optimizer = make(storage)
    train(head, optimizer, range(3))
    before = copies(head)
    twin = copy.deepcopy(head)
    train(twin, HeadSGD(twin, lr=0.05), range(2))
    assert alike(tables(head), before) and not torch.equal(twin.weight, head.weight)
    assert torch.equal(twin.weight, twin.shard.centres.data)
