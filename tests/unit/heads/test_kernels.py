"""The Triton kernels in Triton's interpreter, against the plain engine and the dense fp64 oracle.

tests/gpu/test_kernels_cuda.py asks the same of them on a device. Blocks are small here, so that few rows make several
tiles, chunks and programs.
"""

import dataclasses

import pytest
import torch

from head_reference import Case, assert_agrees, train_oracle, train_ours
from kernel_cases import FORMATS, Step, error, most_error, steps_apart, tensors
from megaclass.errors import UserError
from megaclass.heads.engine import TorchEngine, make_engine
from megaclass.heads.margins import ArcFace, CosFace, Margin
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.sampling import TorchWalker, sample_classes
from megaclass.heads.softmax import SGDStep
from megaclass.heads.storage import Storage
from megaclass.parallel.seeding import KeyedPermutation

if torch.cuda.is_available():
    pytest.skip("tests/gpu runs the kernels on the device", allow_module_level=True)
pytest.importorskip("triton")

from megaclass.heads.kernels import TritonEngine
from megaclass.heads.kernels import engine as kernels_engine
from megaclass.heads.kernels.blocks import Blocks, candidates
from megaclass.heads.kernels.sample import TritonWalker

CPU = torch.device("cpu")
SMALL = [Blocks(32, 32, 8, 1), Blocks(16, 64, 4, 1)]
SHAPES = [(24, 1, 0), (24, 5, 1), (252, 1, 63), (507, 5, 64), (123, 67, 65), (24, 5, 129)]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def small_engines(step: Step, blocks: Blocks = SMALL[0]) -> tuple[TritonEngine, TorchEngine]:
    ours, plain = step.engines()
    ours.blocks, ours.chunk_rows, ours.multiprocessors = blocks, 96, 6
    return ours, plain


# -- pass 1 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["all", "listed", "gathered"])
@pytest.mark.parametrize(("dim", "batch", "rows"), SHAPES)
def test_pass_one(dim: int, batch: int, rows: int, which: str) -> None:
    for format_, blocks in zip(FORMATS, [*SMALL, SMALL[0]], strict=True):
        step = Step(dim, batch, rows, format_, which=which)
        ours, plain = small_engines(step, blocks)
        for ours_, reference in zip(step.pass_one(ours), step.pass_one(plain), strict=True):
            assert ours_.dtype == reference.dtype and ours_.shape == reference.shape
            assert error(ours_, reference) < 3e-6


@pytest.mark.parametrize("margin", [ArcFace(), CosFace(filter_threshold=0.05)])
@pytest.mark.parametrize("shift", [0.0, 13.5])
def test_pass_one_filters_and_shifts(margin: Margin, shift: float) -> None:
    step = Step(dim=40, batch=33, rows=129, margin=margin, shift=shift)
    ours, plain = small_engines(step)
    for ours_, reference in zip(step.pass_one(ours), step.pass_one(plain), strict=True):
        assert error(ours_, reference) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_pass_one_rounds_operands_alone(precision: str) -> None:
    step = Step(dim=123, batch=35, rows=129, precision=precision, margin=ArcFace(), which="all")
    ours, _ = small_engines(step)
    sum_B, values_BD = step.pass_one(ours)
    dtype, active = PRECISIONS[precision], step.active()
    unit_ND = torch.nn.functional.normalize(active.centres.data).to(dtype).double()
    logits_BN = (step.units() * 64).to(dtype).double() @ unit_ND.T
    exp_BN = logits_BN.exp()
    row_B = step.targets(active)
    owned_B = row_B >= 0
    exp_BN[owned_B, row_B[owned_B]] = 0
    assert error(sum_B, exp_BN.sum(1)) < 2e-4
    assert error(values_BD, exp_BN @ unit_ND) < torch.finfo(dtype).eps


def test_fp16_keeps_what_is_far_below_the_largest() -> None:
    """One negative at the target's height, and ten thousand that weigh as much together: e ** -9 each."""
    step = Step(dim=32, batch=1, rows=0, precision="fp16", which="all", margin=ArcFace(scale=64.0))
    ours, plain = step.engines()
    active = Step(dim=32, rows=10_000, which="all").active()
    unit_BD, row_B = step.units(), torch.tensor([-1])
    across_ND = active.centres.data - (active.centres.data @ unit_BD.T) * unit_BD
    active.centres.data.copy_(unit_BD * 0.85 + torch.nn.functional.normalize(across_ND) * 0.5268)
    active.centres.data[0] = unit_BD
    for ours_, reference in zip(
        ours.pass_one(unit_BD, row_B, active, step.margin, 0.0),
        TorchEngine("fp32", CPU).pass_one(unit_BD, row_B, active, step.margin, 0.0),
        strict=True,
    ):
        assert error(ours_, reference) < 2e-2
    for ours_, reference in zip(
        plain.pass_one(unit_BD, row_B, active, step.margin, 0.0),
        TorchEngine("fp32", CPU).pass_one(unit_BD, row_B, active, step.margin, 0.0),
        strict=True,
    ):
        assert error(ours_, reference) < 2e-2


def test_the_same_bits_again() -> None:
    step = Step(dim=40, batch=67, rows=129, precision="bf16")
    ours, _ = small_engines(step)
    for a, b in zip(step.pass_one(ours), step.pass_one(ours), strict=True):
        assert torch.equal(a, b)


# -- pass 2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize(("dim", "batch", "rows"), SHAPES)
def test_pass_two(dim: int, batch: int, rows: int, momentum: bool) -> None:
    """Two micro-batches at a time; what rounding leaves differs where a last place of fp32 tips it."""
    for format_, which, blocks in zip(
        FORMATS, ("all", "listed", "gathered"), [*SMALL, SMALL[0]], strict=True
    ):
        step = Step(dim, batch, rows, format_, momentum, which)
        ours, plain = small_engines(step, blocks)
        moved, reference = step.pass_two(ours), step.pass_two(plain)
        if format_ == "fp32":
            assert most_error(moved, reference) < 3e-6
        elif rows:
            fraction, most = steps_apart(moved, reference)
            assert fraction < 2e-3 and most <= 1
            assert most_error(moved, step.active()) > 0.01, "the step moved something"


@pytest.mark.parametrize("margin", [ArcFace(scale=15.0), CosFace(scale=15.0, filter_threshold=0.05)])
def test_pass_two_filters(margin: Margin) -> None:
    step = Step(dim=40, batch=33, rows=65, margin=margin)
    ours, plain = small_engines(step)
    assert most_error(step.pass_two(ours), step.pass_two(plain)) < 3e-6


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_pass_two_rounds_little(precision: str) -> None:
    step = Step(dim=123, batch=33, rows=65, precision=precision)
    ours, _ = small_engines(step)
    reference = step.pass_two(TorchEngine("fp32", CPU))
    assert most_error(step.pass_two(ours), reference) < {"bf16": 3e-3, "fp16": 4e-4, "tf32": 3e-6}[precision]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_skipped_step_changes_nothing(format_: str) -> None:
    step = Step(format=format_)
    ours, _ = small_engines(step)
    for after, before in zip(tensors(step.pass_two(ours, skipped=True)), tensors(step.active()), strict=True):
        assert torch.equal(after, before)


def test_other_samples_and_sums_over_ranks_are_left_to_plain_pytorch() -> None:
    step = Step()
    ours, plain = small_engines(step)
    calls = []
    plain.pass_two = lambda *args: calls.append(args)  # type: ignore[method-assign]
    active, sgd = step.active(), SGDStep(0.1, 0.9, 0.0)
    batches = step.micro_batches(active)
    ours.pass_two(batches, active, step.margin, sgd, step.rounding, torch.tensor(False), lambda t: t)
    ours.pass_two(batches, step.active(), step.margin, sgd, step.rounding, torch.tensor(False))
    assert len(calls) == 2


# -- rows that steps left out -------------------------------------------------------------------------


def products(rows: int, *kinds: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor([kinds[i % len(kinds)] for i in range(rows)])


IDENTITY = (1.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("which", ["all", "listed", "gathered"])
def test_catch_up_writes_the_same_bits(format_: str, which: str) -> None:
    """Products without sums, so that both engines round the same fp32 numbers: 8-bit scales shrink and grow."""
    grid = [IDENTITY, (0.3, 0.0, 0.0, 0.07), (5.0, 0.0, 0.0, 7.1), (0.0, 0.0, 0.0, 0.999), (1.001, 0, 0, 0)]
    for dim, momentum in ((123, True), (24, False)):
        step = Step(dim, rows=65, format=format_, momentum=momentum, which=which)
        ours, plain = small_engines(step)
        product_N4 = products(65, *grid)
        for a, b in zip(
            tensors(step.catch_up(ours, product_N4)), tensors(step.catch_up(plain, product_N4)), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("format_", FORMATS)
def test_catch_up(format_: str) -> None:
    step = Step(40, rows=33, format=format_)
    ours, plain = small_engines(step)
    product_N4 = products(33, (0.59, 0.1, -0.2, 0.97), IDENTITY)
    caught, reference = step.catch_up(ours, product_N4), step.catch_up(plain, product_N4)
    assert most_error(caught, reference) < (1e-6 if format_ == "fp32" else 1e-3)
    before, rows_N = step.active(), caught.rows_N
    for after, old in zip(tensors(caught), tensors(before), strict=True):
        assert rows_N is not None and torch.equal(after[rows_N[1::2]], old[rows_N[1::2]]), (
            "identity: untouched"
        )


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


def test_samples_are_the_same() -> None:
    labels = torch.tensor([5, 900, 5, 17, 333])
    for start, stop in ((0, 1000), (300, 640)):
        samples = [
            sample_classes(labels, 1000, 250, 11, start, stop, walker)
            for walker in (TorchWalker(), TritonWalker())
        ]
        assert torch.equal(*samples)


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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_rounded_training_stays_near(precision: str) -> None:
    for kernels in ("triton", "torch"):
        case = Case(kernels=kernels, precision=precision, steps=3)
        ours = train_ours(case)
        assert_agrees(ours, train_oracle(case, ours.samples), tolerance=5e-2)


@pytest.mark.parametrize("storage", ["bf16", "int8", "bf16_rowwise", "int8_rowwise", "fp32_rowwise"])
def test_training_agrees_with_plain_pytorch(storage: str) -> None:
    cases = [
        Case(storage=storage, kernels=kernels, sample_rate=0.5, steps=3) for kernels in ("triton", "torch")
    ]
    ours, plain = map(train_ours, cases)
    for a, b in zip(ours.samples, plain.samples, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)
    assert error(torch.tensor(ours.losses), torch.tensor(plain.losses)) < 1e-3


def test_a_head_judges_the_kernels_on_its_storage_and_draws_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged, drawn = [], []
    build, mark = TritonEngine.__init__, TritonWalker.mark

    def seen(self: TritonEngine, *arguments: object) -> None:
        judged.append(arguments[4])
        build(self, *arguments)

    monkeypatch.setattr(TritonEngine, "__init__", seen)
    monkeypatch.setattr(TritonWalker, "mark", lambda *arguments: (drawn.append(1), mark(*arguments)))
    head = PartialFC(40, 24, sample_rate=0.5, storage="int8", kernels="triton")
    judged_by_head, _ = judged[:], drawn.clear()
    head.draw(torch.arange(4))
    assert judged_by_head == [Storage.named("int8")] and drawn == [1]


# -- whether they work --------------------------------------------------------------------------------


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_engine, "INTERPRETED", False)
    with pytest.raises(UserError, match="need a CUDA device"):
        make_engine("triton", "fp32", CPU, 24, 0.0, Storage.named("fp32"))
    assert isinstance(make_engine("auto", "fp32", CPU, 24, 0.0, Storage.named("fp32")), TorchEngine)


def test_too_many_columns_are_refused() -> None:
    with pytest.raises(UserError, match="at most 1024 columns"):
        make_engine("triton", "fp32", CPU, 1025, 0.0, Storage.named("fp32"))


def test_blocks_that_fail_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    odd, good = Blocks(24, 24, 4, 1), SMALL[0]
    monkeypatch.setattr(kernels_engine, "candidates", lambda *_: [odd, good])
    assert Step().engines()[0].blocks == good
    monkeypatch.setattr(kernels_engine, "candidates", lambda *_: [odd])
    with pytest.raises(RuntimeError, match="no blocks work for 24 columns in fp32"):
        Step().engines()


def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        TorchEngine, "pass_one", lambda self, unit_BD, *_: (torch.ones(len(unit_BD)).double(), unit_BD)
    )
    with pytest.raises(RuntimeError, match="sums differ"):
        Step().engines()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_every_dimension_has_blocks(precision: str) -> None:
    for dim in (1, 16, 128, 129, 256, 507, 512, 513, 1024):
        for blocks in candidates(dim, precision):
            assert blocks.rows >= 16 and blocks.turn >= 16
