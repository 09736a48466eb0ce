"""The Triton kernels in Triton's interpreter, against the plain engine and the dense fp64 oracle.

tests/cuda/test_kernels.py asks the same of them on a device. Blocks are small here, so that few rows make several
tiles, chunks and programs.
"""

import dataclasses

import pytest
import torch

from head_reference import Case, assert_agrees, train_oracle, train_ours
from kernel_cases import Step, error, most_error, steps_apart, tensors
from megaclass.errors import UserError
from megaclass.heads.margins import ArcFace, CosFace, Margin
from megaclass.heads.sampling import TorchWalker
from megaclass.heads.shard import make_engine
from megaclass.heads.softmax import TorchEngine
from megaclass.heads.step import HeadOptions, SGDStep
from megaclass.heads.storage import STORAGES, Rows
from megaclass.parallel.seeding import KeyedPermutation

if torch.cuda.is_available():
    pytest.skip("tests/cuda runs the kernels on the device", allow_module_level=True)
pytest.importorskip("triton")

from megaclass.heads.kernels import engine as kernels_engine
from megaclass.heads.kernels.engine import TritonEngine
from megaclass.heads.kernels.launch import Blocks
from megaclass.heads.kernels.sample import TritonWalker

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
SMALL = [Blocks(32, 32, 8, 1), Blocks(16, 64, 4, 1)]
SHAPES = [(24, 1, 0), (24, 5, 1), (252, 1, 63), (507, 5, 64), (123, 67, 65), (24, 5, 129)]


def small_engines(step: Step, blocks: Blocks = SMALL[0]) -> tuple[TritonEngine, TorchEngine]:
    ours, plain = step.engines()
    ours.blocks, ours.chunk_rows, ours.multiprocessors = blocks, 96, 6
    return ours, plain


# -- pass 1 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("dim", "batch", "rows"), SHAPES)
def test_pass_one(dim: int, batch: int, rows: int, listed: bool) -> None:
    for storage, blocks in zip(STORAGES, [*SMALL, SMALL[0]], strict=True):
        step = Step(dim, batch, rows, storage, listed)
        ours, plain = small_engines(step, blocks)
        for ours_, reference in zip(step.pass_one(ours), step.pass_one(plain), strict=True):
            assert ours_.dtype == reference.dtype and ours_.shape == reference.shape
            assert error(ours_, reference) < 3e-6


@pytest.mark.parametrize("shift", [0.0, 13.5])
def test_passes_filter_and_shift(shift: float) -> None:
    margin = CosFace(filter_threshold=0.05)
    step = Step(dim=40, batch=33, rows=129, margin=margin, shift=shift)
    ours, plain = small_engines(step)
    for ours_, reference in zip(step.pass_one(ours), step.pass_one(plain), strict=True):
        assert error(ours_, reference) < 1e-5
    step = dataclasses.replace(step, margin=CosFace(scale=15.0, filter_threshold=0.05))
    assert most_error(step.pass_two(ours), step.pass_two(plain)) < 3e-6


def test_pass_one_rounds_operands_alone_and_repeats_the_bits() -> None:
    step = Step(dim=123, batch=35, rows=129, precision="bf16", margin=ArcFace(), listed=False)
    ours, _ = small_engines(step)
    sum_B, values_BD = step.pass_one(ours)
    active = step.active()
    unit_ND = torch.nn.functional.normalize(active.centres.data).bfloat16().double()
    exp_BN = ((step.units() * 64).bfloat16().double() @ unit_ND.T).exp()
    row_B = step.targets(active)
    owned_B = row_B >= 0
    exp_BN[owned_B, row_B[owned_B]] = 0
    assert error(sum_B, exp_BN.sum(1)) < 2e-4
    assert error(values_BD, exp_BN @ unit_ND) < torch.finfo(torch.bfloat16).eps
    for a, b in zip(step.pass_one(ours), (sum_B, values_BD), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_centre_that_diverged_is_seen(value: float) -> None:
    step = Step(rows=129, listed=False)
    active, row_B = step.active(), torch.full((step.batch,), -1)
    row_B[0] = 70  # the one row whose sum leaves it out
    active.centres.data[70, 3] = value
    sum_B, _, _ = small_engines(step)[0].pass_one(step.units(), row_B, active, step.margin, 0.0)
    assert torch.isfinite(sum_B).tolist() == [True] + [False] * (step.batch - 1)


# -- pass 2 -------------------------------------------------------------------------------------------


def test_centres_and_momentum_may_lie_side_by_side() -> None:
    step = Step(dim=40)
    ours, _ = small_engines(step)
    apart, beside = step.active(), step.active()
    assert apart.momentum is not None
    both = torch.cat([apart.centres.data, apart.momentum.data], 1)
    beside = dataclasses.replace(beside, centres=Rows(both[:, :40]), momentum=Rows(both[:, 40:]))
    for active in (apart, beside):
        sgd, skipped = SGDStep(0.5, 0.9, 0.05), torch.tensor(False)
        ours.pass_two(step.micro_batches(active), active, step.margin, sgd, step.rounding, skipped)
    for a, b in zip(tensors(apart), tensors(beside), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("dim", "batch", "rows"), SHAPES)
def test_pass_two(dim: int, batch: int, rows: int) -> None:
    """Two micro-batches at a time; what rounding leaves differs where a last place of fp32 tips it."""
    for storage, listed, blocks in zip(STORAGES, (False, True, True), [*SMALL, SMALL[0]], strict=True):
        step = Step(dim, batch, rows, storage, listed)
        ours, plain = small_engines(step, blocks)
        moved, reference = step.pass_two(ours), step.pass_two(plain)
        if storage == "fp32":
            assert most_error(moved, reference) < 3e-6
        elif rows:
            fraction, most = steps_apart(moved, reference)
            assert fraction < 2e-3 and most <= 1
            assert most_error(moved, step.active()) > 0.01, "the step moved something"


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-3), ("tf32", 3e-6)])
def test_pass_two_rounds_little(precision: str, tolerance: float) -> None:
    step = Step(dim=123, batch=33, rows=65, precision=precision)
    ours, _ = small_engines(step)
    assert most_error(step.pass_two(ours), step.pass_two(TorchEngine("fp32", CPU))) < tolerance


@pytest.mark.parametrize("storage", STORAGES)
def test_a_skipped_step_changes_nothing(storage: str) -> None:
    step = Step(storage=storage)
    ours, _ = small_engines(step)
    for after, before in zip(tensors(step.pass_two(ours, skipped=True)), tensors(step.active()), strict=True):
        assert torch.equal(after, before)


def test_other_samples_and_sums_over_ranks_are_left_to_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step()
    ours, _ = small_engines(step)
    calls = []
    monkeypatch.setattr(TorchEngine, "pass_two", lambda *args: calls.append(args))
    active, sgd = step.active(), SGDStep(0.1, 0.9, 0.0)
    batches = step.micro_batches(active)
    ours.pass_two(batches, active, step.margin, sgd, step.rounding, torch.tensor(False), lambda t: t)
    ours.pass_two(batches, step.active(), step.margin, sgd, step.rounding, torch.tensor(False))
    assert len(calls) == 2


# -- rows that steps left out -------------------------------------------------------------------------

IDENTITY = (1.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("listed", [True, False])
def test_catch_up_writes_the_same_bits(storage: str, listed: bool) -> None:
    """Products without sums, so that both engines round the same fp32 numbers: 8-bit scales shrink and grow."""
    grid = [IDENTITY, (0.3, 0.0, 0.0, 0.07), (5.0, 0.0, 0.0, 7.1), (0.0, 0.0, 0.0, 0.999), (1.001, 0, 0, 0)]
    grid += [(0.0, 0.0, 0.0, factor) for factor in (1 + 2**-23, 2**-130, 2**-149)]
    product_N4 = torch.tensor(grid).repeat(9, 1)[:65]
    for dim in (123, 24):
        step = Step(dim, rows=65, storage=storage, listed=listed)
        caught, reference = (step.catch_up(engine, product_N4) for engine in small_engines(step))
        for a, b in zip(tensors(caught), tensors(reference), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("storage", STORAGES)
def test_catch_up(storage: str) -> None:
    step = Step(40, rows=34, storage=storage)
    product_N4 = torch.tensor([(0.59, 0.1, -0.2, 0.97), IDENTITY]).repeat(17, 1)
    caught, reference = (step.catch_up(engine, product_N4) for engine in small_engines(step))
    assert most_error(caught, reference) < (1e-6 if storage == "fp32" else 1e-3)
    untouched_N = caught.shard_rows(slice(1, 34))[::2]
    for after, old in zip(tensors(caught), tensors(step.active()), strict=True):
        assert torch.equal(after[untouched_N], old[untouched_N])


# -- sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 4097, 2**31 + 5, 2**40 + 1])
def test_walker(n: int) -> None:
    permutation = KeyedPermutation(n, 7)
    place_N = torch.arange(min(n, 1100))
    element_N = permutation(place_N)
    assert torch.equal(TritonWalker().inverse(permutation, element_N), place_N)
    start, size = n // 3, min(n - n // 3, 5000)
    marks = [torch.zeros(size + 1, dtype=torch.bool) for _ in range(2)]
    window = torch.tensor(min(n, 1050))
    for walker, mark in zip((TorchWalker(), TritonWalker()), marks, strict=True):
        walker.mark(permutation, window, len(place_N), start, mark)
    assert torch.equal(marks[0][:-1], marks[1][:-1])
    assert n > 5000 or marks[1].any()


# -- a head -------------------------------------------------------------------------------------------

CASES = {
    "full": Case(),
    "exact, accumulated": Case(margin=ArcFace(gradient="exact"), accumulation=4),
    "sampled": Case(margin=CosFace(), sample_rate=0.4, accumulation=2),
    "filtered": Case(margin=Margin(scale=32.0, filter_threshold=0.6)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_training_agrees_with_the_oracle(case: Case) -> None:
    case = dataclasses.replace(case, kernels="triton", steps=6)
    ours = train_ours(case)
    assert_agrees(ours, train_oracle(case, ours.samples))


@pytest.mark.parametrize("kernels", ["triton", "torch"])
def test_rounded_training_stays_near(kernels: str) -> None:
    case = Case(kernels=kernels, precision="bf16", steps=3)
    ours = train_ours(case)
    assert_agrees(ours, train_oracle(case, ours.samples), tolerance=5e-2)


@pytest.mark.parametrize("storage", ["bf16", "int8_rowwise"])
def test_training_agrees_with_plain_pytorch(storage: str) -> None:
    case = Case(storage=storage, sample_rate=0.5, steps=3)
    ours, plain = (train_ours(dataclasses.replace(case, kernels=kernels)) for kernels in ("triton", "torch"))
    for a, b in zip(ours.samples, plain.samples, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)
    assert error(torch.tensor(ours.losses), torch.tensor(plain.losses)) < 1e-3


# -- whether they work --------------------------------------------------------------------------------


def test_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="at most 1024 columns"):
        make_engine(HeadOptions(kernels="triton"), STORAGES["fp32"], 1025, CPU)
    monkeypatch.setattr(TritonEngine, "device_types", ("cuda",))
    with pytest.raises(UserError, match="need a CUDA device"):
        make_engine(HeadOptions(kernels="triton"), STORAGES["fp32"], 24, CPU)
    assert make_engine(HeadOptions(), STORAGES["fp32"], 24, CPU).name == "torch"
    assert make_engine(HeadOptions(sub_centres=2), STORAGES["fp32"], 24, torch.device("cuda")).name == "torch"
    with pytest.raises(UserError, match="they know no sub_centres"):
        make_engine(HeadOptions(sub_centres=2, kernels="triton"), STORAGES["fp32"], 24, CPU)


def test_blocks_that_fail_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    odd, good = Blocks(24, 24, 4, 1), SMALL[0]
    monkeypatch.setattr(kernels_engine, "candidates", lambda *_: [odd, good])
    assert Step().engines()[0].blocks == good
    monkeypatch.setattr(kernels_engine, "candidates", lambda *_: [odd])
    with pytest.raises(RuntimeError, match="no blocks work for 24 columns in fp32"):
        Step().engines()


def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        TorchEngine, "pass_one", lambda self, unit_BD, *_: (torch.ones(len(unit_BD)).double(), unit_BD, None)
    )
    with pytest.raises(RuntimeError, match="sums differ"):
        Step().engines()
