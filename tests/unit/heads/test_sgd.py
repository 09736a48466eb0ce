"""HeadSGD as torch users meet it: schedulers, scalers, state dicts; and the bound on skipped rows."""

import dataclasses
import warnings

import pytest
import torch

from head_reference import Case, train_ours
from megaclass import HeadSGD, PartialFC, UserError

CLASSES, DIM, BATCH = 40, 8, 6


def step_of(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(BATCH, DIM, generator=generator),
        torch.randint(0, CLASSES, (BATCH,), generator=generator),
    )


def make(sample_rate: float = 0.3) -> tuple[PartialFC, HeadSGD]:
    head = PartialFC(CLASSES, DIM, sample_rate=sample_rate)
    return head, HeadSGD(head, lr=0.05)


def train(head: PartialFC, optimizer: HeadSGD, steps: range) -> None:
    for step in steps:
        head(*step_of(step)).backward()
        optimizer.step()


def test_torch_schedulers_drive_it() -> None:
    head, optimizer = make()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    train(head, optimizer, range(1))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.025


def test_grad_scaler_drives_it_beside_another_optimizer() -> None:
    plain, plain_optimizer = make(1.0)
    scaled, scaled_optimizer = make(1.0)
    embeddings, labels = step_of(0)
    plain(embeddings, labels).backward()
    plain_optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    backbone = torch.nn.Linear(DIM, DIM)
    with torch.no_grad():
        backbone.weight.copy_(torch.eye(DIM))
        backbone.bias.zero_()
    other = torch.optim.SGD(backbone.parameters(), lr=0.1)
    scaler.scale(scaled(backbone(embeddings), labels)).backward()
    scaler.step(other)
    scaler.step(scaled_optimizer)
    scaler.update()
    torch.testing.assert_close(scaled.weight, plain.weight, rtol=1e-5, atol=1e-7)


def test_a_non_finite_step_moves_nothing() -> None:
    head, optimizer = make()
    train(head, optimizer, range(3))
    optimizer.catch_up()
    weight, momentum = head.weight.detach().clone(), optimizer.momentum_buffer.clone()
    embeddings, labels = step_of(3)
    head(embeddings * float("nan"), labels).backward()
    optimizer.step()
    optimizer.step()  # the micro-batch is gone: nothing to do
    assert torch.equal(head.weight, weight) and torch.equal(optimizer.momentum_buffer, momentum)
    assert head.shard.steps == 4  # it counts, so that no host sync is needed to know


def test_grad_scaler_skips_a_step_of_infinite_embeddings() -> None:
    head, optimizer = make(1.0)
    weight = head.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    embeddings, labels = step_of(0)
    leaf = torch.nn.Parameter(embeddings * float("inf"))
    other = torch.optim.SGD([leaf], lr=0.1)
    scaler.scale(head(leaf, labels)).backward()
    scaler.step(other)
    scaler.step(optimizer)
    assert torch.equal(head.weight, weight)


def test_unscaling_the_head_is_refused() -> None:
    head, optimizer = make(1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    embeddings, labels = step_of(0)
    scaler.scale(head(embeddings, labels)).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(UserError, match="unscale_"):
        scaler.step(optimizer)


def test_zero_grad_drops_what_was_not_stepped() -> None:
    head, optimizer = make()
    weight = head.weight.detach().clone()
    head(*step_of(0)).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(head.weight, weight)


def test_the_weight_never_gets_a_dense_gradient() -> None:
    head, _ = make()
    head(*step_of(0)).backward()
    assert head.weight.grad is None


def test_a_forgotten_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaclass.heads.partial_fc._MAX_PENDING", 3)
    head, _ = make()
    with pytest.raises(UserError, match="HeadSGD"):
        for step in range(5):
            head(*step_of(step)).backward()


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    head, _ = make()
    with pytest.raises(UserError, match=rf"label {label} is outside"):
        head(torch.randn(1, DIM), torch.tensor([label]))


@pytest.mark.parametrize(
    "wrong", [{"num_classes": 0}, {"sample_rate": 0.0}, {"parallelism": "x"}, {"precision": "fp8"}], ids=str
)
def test_refuses_what_makes_no_sense(wrong: dict) -> None:
    with pytest.raises(ValueError):
        PartialFC(**{"num_classes": 5, "embedding_dim": 4, **wrong})


def test_one_class_has_no_loss() -> None:
    head = PartialFC(1, DIM)
    loss = head(torch.randn(2, DIM, requires_grad=True), torch.zeros(2, dtype=torch.int64))
    loss.backward()
    HeadSGD(head).step()
    assert loss.item() == 0.0 and torch.isfinite(head.weight).all()


def test_small_tiles_change_nothing() -> None:
    case = Case(num_classes=700, sample_rate=0.5, steps=3)
    one, many = train_ours(case), train_ours(dataclasses.replace(case, tile_mb=1e-6))
    torch.testing.assert_close(one.centres, many.centres, rtol=1e-5, atol=1e-6)


def test_a_head_without_its_optimizer_says_so_once() -> None:
    head = PartialFC(CLASSES, DIM)
    with pytest.warns(UserWarning, match="centres will not move"):
        head(*step_of(0)).backward()
    with warnings.catch_warnings(action="error"):
        head(*step_of(1)).backward()
        trained, _ = make()
        trained(*step_of(0)).backward()


def test_the_optimizer_takes_the_head_itself() -> None:
    with pytest.raises(TypeError, match="takes the head itself"):
        HeadSGD(PartialFC(CLASSES, DIM).parameters(), lr=0.1)
