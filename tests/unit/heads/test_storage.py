"""Centres and momentum in fewer bytes: rounding without bias, the same bits again, any storage to any other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from head_reference import Case, relative_error, train_oracle, train_ours
from megaclass import HeadSGD, PartialFC
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


def test_a_new_scale_is_the_smallest_that_holds_the_peak_to_the_last_place() -> None:
    powers = torch.arange(-149, 122).double()
    most = (INT8_MOST * 2.0**powers).float()
    peak = torch.cat([torch.zeros(1), most, most.nextafter(torch.tensor(torch.inf)), torch.tensor([3.4e38])])
    new = settled_scale(peak, torch.full_like(peak, torch.inf)).double()
    assert ((peak.double() <= INT8_MOST * new) & (new >= 2.0**-126)).all()
    assert ((peak.double() > INT8_MOST * new / 2) | (new == 2.0**-126)).all()
    assert settled_scale(torch.tensor([torch.inf, torch.nan]), torch.ones(2)).isnan().all()


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
        HeadSGD(head)
        tables = [head.shard.centres] + ([head.shard.momentum] if head.shard.momentum else [])
        assert sum(t[0].nbytes for rows in tables for t in rows.tensors.values()) == expected


# -- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample_rate", [1.0, 0.4])
def test_bf16_stays_near_the_oracle(sample_rate: float) -> None:
    case = Case(storage="bf16", sample_rate=sample_rate)
    ours = train_ours(case)
    oracle = train_oracle(case, ours.samples)
    assert relative_error(ours.centres, oracle.centres) < 2e-2
    assert relative_error(torch.tensor(ours.losses), torch.tensor(oracle.losses)) < 2e-2


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


def test_rows_that_diverged_stay_seen() -> None:
    for value in (float("nan"), float("inf")):
        values = torch.randn(4, 8)
        values[1, 3] = value
        table = rounded_to_int8(values, torch.full((4,), 0.1), 0)
        put = Rows.zeros(4, 8, torch.int8, CPU)
        put.put(slice(None), values)
        for rows in (table.fp32(), put.fp32(), rounded_to_bf16(values, 0).float()):
            assert not torch.isfinite(rows[1]).all() and torch.isfinite(rows[[0, 2, 3]]).all()


def test_unknown_storage_names_the_near_match() -> None:
    with pytest.raises(ValueError, match="did you mean 'int8_rowwise'"):
        Storage.named("bf16_rowwise")
