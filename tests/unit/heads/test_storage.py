"""Centres and momentum in fewer bytes: rounding without bias, the same bits again, any storage to any other."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from head_reference import Case, relative_error, train_oracle, train_ours
from megaclass import ArcFace, HeadSGD, PartialFC, UserError
from megaclass.heads import shard
from megaclass.heads.oracle import dense_loss
from megaclass.heads.storage import (
    INT8_MOST,
    STORAGES,
    Rounding,
    Rows,
    Storage,
    round_to_bf16,
    round_to_int8,
    settled_scale,
)

CPU = torch.device("cpu")


def noise(step: int, rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    rounding = Rounding(0, step, "test", 0, dim, CPU)
    return rounding.column_D, rounding.of_rows(torch.arange(rows))


def rounded_to_bf16(values: torch.Tensor, step: int) -> torch.Tensor:
    out, scratch = torch.empty_like(values, dtype=torch.bfloat16), torch.empty_like(values, dtype=torch.int32)
    round_to_bf16(values.clone(), *noise(step, *values.shape), scratch, out)
    return out


def rounded_to_int8(values: torch.Tensor, scale: torch.Tensor, step: int) -> Rows:
    out = torch.empty_like(values, dtype=torch.int8)
    scale = round_to_int8(values.clone(), *noise(step, *values.shape), torch.empty_like(values), scale, out)
    return Rows(out, scale)


# -- rounding -----------------------------------------------------------------------------------------


def test_stochastic_rounding_has_no_bias() -> None:
    torch.manual_seed(0)
    values = torch.randn(16, 32)
    scale = torch.full((16,), 0.03)
    draws = 4000
    bf16, int8 = torch.zeros(16, 32, dtype=torch.float64), torch.zeros(16, 32, dtype=torch.float64)
    for step in range(draws):
        bf16 += rounded_to_bf16(values, step).double()
        int8 += rounded_to_int8(values, scale, step).fp32().double()
    # A step is 2^-7 of the number at most; rounding to one side would leave a bias of half a step.
    assert ((bf16 / draws - values).abs() / values.abs()).max() < 5 * 2**-8 / draws**0.5
    step_size = rounded_to_int8(values, scale, 0).scale[:, None]
    assert ((int8 / draws - values).abs() / step_size).max() < 5 * 0.5 / draws**0.5


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.floats(-30, 30), st.integers(1, 9), st.integers(1, 40))
def test_rounds_to_a_neighbour_and_keeps_what_fits(seed: int, exponent: float, rows: int, dim: int) -> None:
    values = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    once = rounded_to_bf16(values, seed)
    assert ((once.float() - values).abs() <= values.abs() * 2**-7).all()
    assert torch.equal(rounded_to_bf16(once.float(), seed + 1), once)

    table = rounded_to_int8(values, torch.full((rows,), 2.0**-126), seed)
    assert ((table.fp32() - values).abs() <= table.scale[:, None]).all()
    again = rounded_to_int8(table.fp32(), table.scale, seed + 1)
    assert torch.equal(again.fp32(), table.fp32())


@settings(deadline=None, max_examples=50)
@given(st.floats(-100, 100), st.integers(-100, 100))
def test_scales_are_powers_of_two_that_hold_the_peak(peak_log: float, scale_log: int) -> None:
    peak, scale = torch.tensor([2.0**peak_log]), torch.tensor([2.0**scale_log])
    settled = settled_scale(peak, scale)
    assert torch.frexp(settled).mantissa.item() == 0.5
    steps = (peak / settled).item()
    assert 47.9 <= steps <= INT8_MOST
    assert torch.equal(settled_scale(peak, settled), settled)


def test_the_numbers_are_uniform_and_differ_between_steps_rows_and_columns() -> None:
    summands = [noise(step, 32, 64) for step in range(64)]
    drawn = torch.stack([(column_D + row_T[:, None]) & 0xFFFF for column_D, row_T in summands]).double()
    assert abs(drawn.mean().item() / 65535 - 0.5) < 0.01
    assert abs(drawn.std().item() / 65536 - 12**-0.5) < 0.01
    flat = drawn.flatten(1)
    assert len(torch.unique(flat[0])) > 0.9 * flat.shape[1]
    correlation = torch.corrcoef(flat)
    assert (correlation - torch.eye(64)).abs().max() < 0.2


def test_bytes_a_class_are_what_the_table_says() -> None:
    for name, expected in {"fp32": 4096, "bf16": 2048, "int8_rowwise": 516}.items():
        head = PartialFC(10, 512, storage=name)
        optimizer = HeadSGD(head)
        tables = [head.shard.centres] + ([head.shard.momentum] if head.shard.momentum else [])
        assert sum(t[0].nbytes for rows in tables for t in rows.tensors.values()) == expected
        assert (optimizer.momentum_buffer is None) == name.endswith("rowwise")


# -- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample_rate", [1.0, 0.4])
@pytest.mark.parametrize(("storage", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_stays_near_the_oracle(storage: str, tolerance: float, sample_rate: float) -> None:
    case = Case(storage=storage, sample_rate=sample_rate)
    ours = train_ours(case)
    oracle = train_oracle(case, ours.samples)
    assert relative_error(ours.centres, oracle.centres) < tolerance
    assert relative_error(torch.tensor(ours.losses), torch.tensor(oracle.losses)) < tolerance


class DampedSGD(torch.optim.Optimizer):
    """What row-wise storage computes, dense and plain."""

    def __init__(self, parameters: list, momentum: float, weight_decay: float, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "tail": 1 / (1 - momentum), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        (w,) = group["params"]
        lr = group["lr"] * group["tail"]
        turn = lr * w.grad.norm(dim=1, keepdim=True) / w.norm(dim=1, keepdim=True)
        w.copy_((1 - lr * group["weight_decay"]) * w - lr / (1 + turn / 0.5) * w.grad)


@pytest.mark.parametrize("parallelism", ["model", "data"])
@pytest.mark.parametrize("sample_rate", [1.0, 0.4])
def test_row_wise_steps_are_those_of_a_dense_optimizer(
    monkeypatch: pytest.MonkeyPatch, sample_rate: float, parallelism: str
) -> None:
    """In fp32, which leaves the rounding out: no storage of users keeps fp32 rows without momentum."""
    monkeypatch.setitem(STORAGES, "fp32", Storage(torch.float32, momentum=False))
    case = Case(sample_rate=sample_rate, momentum=0.5, parallelism=parallelism)
    ours = train_ours(case)
    oracle = train_oracle(case, ours.samples, optimizer=DampedSGD)
    assert relative_error(ours.centres, oracle.centres) < 1e-5
    assert ours.momentum.numel() == 0
    monkeypatch.undo()
    case = Case(storage="int8_rowwise", sample_rate=sample_rate, momentum=0.5, parallelism=parallelism)
    assert relative_error(train_ours(case).centres, oracle.centres) < 8e-2


def make(storage: str, **options) -> tuple[PartialFC, HeadSGD]:
    options = {"sample_rate": 0.3, **options}
    head = PartialFC(200, 16, margin=ArcFace(), storage=storage, **options)
    return head, HeadSGD(head, lr=0.05)


def train(head: PartialFC, optimizer: HeadSGD, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        embeddings, labels = (
            torch.randn(8, 16, generator=generator),
            torch.randint(200, (8,), generator=generator),
        )
        loss = head(embeddings, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same_bits(head: PartialFC, optimizer: HeadSGD, twin: PartialFC, twin_optimizer: HeadSGD) -> None:
    optimizer.catch_up()
    twin_optimizer.catch_up()
    for ours, theirs in (
        (head.shard.centres, twin.shard.centres),
        (head.shard.momentum, twin.shard.momentum),
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert all(torch.equal(a, theirs.tensors[key]) for key, a in ours.tensors.items())


@pytest.mark.parametrize("storage", STORAGES)
def test_state_dicts_restore_the_bits(storage: str) -> None:
    head, optimizer = make(storage)
    train(head, optimizer, range(7))
    stored_optimizer = copy.deepcopy(optimizer.state_dict())
    stored_head = copy.deepcopy(head.state_dict())
    twin, twin_optimizer = make(storage)
    twin.load_state_dict(stored_head)
    twin_optimizer.load_state_dict(stored_optimizer)
    assert train(head, optimizer, range(7, 12)) == train(twin, twin_optimizer, range(7, 12))
    assert_same_bits(head, optimizer, twin, twin_optimizer)


LOOKS = {
    "state_dict": lambda head, optimizer: head.state_dict(),
    "optimizer.state_dict": lambda head, optimizer: optimizer.state_dict(),
    "deepcopy": lambda head, optimizer: copy.deepcopy(head),
    "cpu": lambda head, optimizer: head.cpu(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_in_mid_step_changes_nothing(look: str) -> None:
    results = []
    for looks in (False, True):
        head, optimizer = make("fp32")
        for step in range(12):
            generator = torch.Generator().manual_seed(step)
            labels = torch.randint(200, (8,), generator=generator)
            head.draw(labels)
            if looks and step % 3 == 0:
                LOOKS[look](head, optimizer)
            head(torch.randn(8, 16, generator=generator), labels).backward()
            if looks and step % 3 == 1:
                LOOKS[look](head, optimizer)
            optimizer.step()
        optimizer.catch_up()
        results.append((head.centres(), head.shard.momentum.fp32()))
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
        parts = [
            (torch.randn(4, 8, generator=generator), torch.randint(60, (4,), generator=generator))
            for _ in "ab"
        ]
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
    head, optimizer = make("fp32")
    train(head, optimizer, range(6))
    first, second = (head(torch.randn(8, 16), torch.arange(8)) for _ in "ab")
    first.backward()
    optimizer.step()
    second.backward()
    before = head.shard.steps
    optimizer.step()
    optimizer.catch_up()
    assert head.shard.steps == before + 1 and torch.isfinite(head.centres()).all()


def test_a_second_optimizer_begins_where_the_first_ended() -> None:
    head, optimizer = make("fp32")
    train(head, optimizer, range(8))
    twin = copy.deepcopy(head)
    later = HeadSGD(head, lr=0.05)
    assert torch.equal(head.centres(), twin.centres()) and not later.momentum_buffer.any()
    head(torch.randn(4, 16), torch.arange(4)).backward()
    with pytest.raises(UserError, match="another HeadSGD"):
        optimizer.step()


@pytest.mark.parametrize("after", ["fp32", "bf16"])
@pytest.mark.parametrize("before", [*STORAGES, "int8"])
def test_momentum_is_taken_from_any_storage(before: str, after: str) -> None:
    """From 8 bits too, in which earlier versions kept it."""
    buffer = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) * 1e-3
    rows = Rows.zeros(200, 16, STORAGES.get(before, STORAGES["int8_rowwise"]).dtype, CPU)
    rows.put(slice(None), buffer)
    head, optimizer = make(after)
    stored = optimizer.state_dict()
    scale = {} if rows.scale is None else {"momentum_scale": rows.scale}
    own = {} if before == "int8_rowwise" else {"momentum_buffer": rows.data, **scale}
    train(head, optimizer, range(2))
    optimizer.load_state_dict({**stored, "state": {0: {**own, "step": 7}}})
    expected = buffer if own else torch.zeros(200, 16)
    assert head.shard.momentum is not None and head.shard.steps == 7
    assert (head.shard.momentum.fp32() - expected).abs().max() <= 0.02 * expected.abs().max()


def test_a_state_of_another_shape_is_refused() -> None:
    head, optimizer = make("fp32")
    train(head, optimizer, range(2))
    for rows, columns in ((50, 16), (200, 1)):
        stored = copy.deepcopy(optimizer.state_dict())
        stored["state"][0]["momentum_buffer"] = torch.zeros(rows, columns)
        with pytest.raises(UserError, match="momentum_buffer"):
            optimizer.load_state_dict(stored)
    eight_bits, _ = make("int8_rowwise")
    for bad in ({}, {"weight_scale": torch.ones(1)}, {"weight_scale": torch.ones(200, dtype=torch.int64)}):
        with pytest.raises(UserError, match="scales"):
            head.load_state_dict({"weight": eight_bits.weight.data, **bad})
    with pytest.raises(UserError, match="int64"):
        head.load_state_dict({"weight": torch.zeros(200, 16, dtype=torch.int64)})


def test_rows_that_diverged_stay_seen() -> None:
    for value in (float("nan"), float("inf")):
        values = torch.randn(4, 8)
        values[1, 3] = value
        table = rounded_to_int8(values, torch.full((4,), 0.1), 0)
        put = Rows.zeros(4, 8, torch.int8, CPU)
        put.put(slice(None), values)
        for rows in (table.fp32(), put.fp32(), rounded_to_bf16(values, 0).float()):
            assert not torch.isfinite(rows[1]).all() and torch.isfinite(rows[[0, 2, 3]]).all()


def test_labels_outside_the_drawn_sample_are_refused() -> None:
    head, optimizer = make("fp32", sample_rate=0.05)
    head.draw(torch.arange(4))
    optimizer.zero_grad()  # keeps what was just drawn
    with pytest.raises(UserError, match="not in the sample"):
        head(torch.randn(4, 16), torch.tensor([150, 151, 152, 153]))


@pytest.mark.parametrize("storage", STORAGES)
def test_centres_of_any_storage_are_taken(storage: str) -> None:
    torch.manual_seed(0)
    centres = torch.randn(200, 16)
    head, _ = make(storage)
    head.load_state_dict({"weight": centres})  # as arcface_torch stores them
    tolerance = {"fp32": 0, "bf16": 2**-8, "int8": 2**-6}[storage.partition("_")[0]]
    assert (head.centres() - centres).abs().max() <= tolerance * centres.abs().max()
    for other in STORAGES:
        taker, _ = make(other)
        taker.load_state_dict(head.state_dict())
        assert (taker.centres() - centres).abs().max() <= 2**-5 * centres.abs().max()


def test_a_state_dict_owes_nothing_and_loaded_centres_owe_nothing() -> None:
    head, optimizer = make("fp32")
    train(head, optimizer, range(5))
    stored = copy.deepcopy(head.state_dict())
    optimizer.catch_up()
    assert torch.equal(stored["weight"], head.centres())
    train(head, optimizer, range(5, 10))
    head.load_state_dict(stored)
    optimizer.catch_up()
    assert torch.equal(head.centres(), stored["weight"])


def test_the_storage_is_not_changed_by_moving_it() -> None:
    for storage, change in (("fp32", "half"), ("bf16", "float"), ("int8_rowwise", "half")):
        head, _ = make(storage)
        with pytest.raises(TypeError, match="storage"):
            getattr(head, change)()
    head, _ = make("bf16")
    assert head.cpu() is head


def test_unknown_storage_names_the_near_match() -> None:
    with pytest.raises(ValueError, match="did you mean 'int8_rowwise'"):
        Storage.named("bf16_rowwise")


@pytest.mark.parametrize("storage", ["fp32", "int8_rowwise"])
def test_a_copy_is_a_head_of_its_own(storage: str) -> None:
    head, optimizer = make(storage)
    train(head, optimizer, range(3))
    optimizer.catch_up()
    twin = copy.deepcopy(head)
    before = head.centres()
    train(twin, HeadSGD(twin, lr=0.05), range(2))
    assert torch.equal(head.centres(), before) and not torch.equal(twin.centres(), before)
    assert torch.equal(twin.weight, twin.shard.centres.data)
