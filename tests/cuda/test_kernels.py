"""The Triton kernels on a device, at sizes that fill it: against plain PyTorch in fp32 and fp64, and what they cost."""

import pytest
import torch

from kernel_cases import Step, error, most_error, steps_apart, tensors
from megaclass.heads.margins import ArcFace
from megaclass.heads.sampling import TorchWalker, sample_classes
from megaclass.heads.softmax import TorchEngine
from megaclass.heads.step import SGDStep
from megaclass.heads.storage import STORAGES

pytestmark = pytest.mark.gpu
pytest.importorskip("triton")

# Relative errors of sums over many classes, and of a table after a large step.
TOLERANCE = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 6e-2}
STORED = {"fp32": 0.0, "bf16": 5e-3, "int8_rowwise": 2e-2}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("dim", "batch", "rows"), [(512, 1024, 100_003), (507, 257, 4_099), (128, 64, 30_000)])
def test_passes(dim: int, batch: int, rows: int, storage: str, precision: str) -> None:
    step = Step(dim, batch, rows, storage, precision=precision, margin=ArcFace(), device="cuda")
    ours, plain = step.engines()[0], TorchEngine("fp32", torch.device("cuda"))
    for ours_, reference in zip(step.pass_one(ours), step.pass_one(plain), strict=True):
        assert error(ours_, reference) < TOLERANCE[precision]
    moved, reference_ = step.pass_two(ours), step.pass_two(plain)
    assert most_error(moved, reference_) < max(TOLERANCE[precision], STORED[storage])


@pytest.mark.parametrize("dim", [24, 123, 252, 640, 1024])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_dimensions(dim: int, precision: str) -> None:
    if dim > 512 and precision == "tf32":
        with pytest.raises(RuntimeError, match="spills"):
            Step(dim, precision=precision, device="cuda").engines()
        return
    for batch, rows, listed in ((1, 1, False), (67, 129, True), (3, 0, True)):
        step = Step(dim, batch, rows, listed=listed, precision=precision, device="cuda")
        ours, plain = step.engines()[0], TorchEngine("fp32", torch.device("cuda"))
        for ours_, reference in zip(step.pass_one(ours), step.pass_one(plain), strict=True):
            assert error(ours_, reference) < TOLERANCE[precision]
        assert most_error(step.pass_two(ours), step.pass_two(plain)) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_same_bits_again(precision: str) -> None:
    step = Step(512, 1024, 50_000, "int8_rowwise", precision=precision, margin=ArcFace(), device="cuda")
    ours = step.engines()[0]
    for a, b in zip(step.pass_one(ours), step.pass_one(ours), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(tensors(step.pass_two(ours)), tensors(step.pass_two(ours)), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(tensors(step.pass_two(ours, skipped=True)), tensors(step.active()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("storage", STORAGES)
def test_catch_up(storage: str) -> None:
    """A fused multiplication may tip a last place; identities keep every bit."""
    step = Step(512, rows=40_000, storage=storage, device="cuda")
    ours, plain = step.engines()
    product_N4 = torch.tensor([[0.59, 0.1, -0.2, 0.97], [1.0, 0.0, 0.0, 1.0]]).repeat(20_000, 1)
    caught, reference = step.catch_up(ours, product_N4), step.catch_up(plain, product_N4)
    assert most_error(caught, reference) < (1e-6 if storage == "fp32" else 1e-3)
    if storage != "fp32":
        assert steps_apart(caught, reference)[0] < 1e-3
    assert caught.rows_N is not None
    for after, before in zip(tensors(caught), tensors(step.active()), strict=True):
        assert torch.equal(after[caught.rows_N[1::2]], before[caught.rows_N[1::2]])


@pytest.mark.parametrize("num_classes", [10_000_019, 2**31 + 11])
def test_samples(num_classes: int) -> None:
    walkers = (Step(device="cuda").engines()[0].walker, TorchWalker())
    labels = torch.randint(0, num_classes, (1024,), device="cuda")
    start, stop = num_classes // 3, num_classes // 3 + 5_000_000
    samples = [sample_classes(labels, num_classes, 1_000_000, 5, start, stop, walker) for walker in walkers]
    assert len(samples[0]) and torch.equal(*samples)


def test_no_logits_and_no_gradient_in_memory() -> None:
    """At 1,024 x 1,000,000 the logits would be 4.1 GB in fp32, a dense gradient 2.0 GB."""
    step = Step(512, 1024, 1_000_000, "bf16", precision="bf16", margin=ArcFace(), device="cuda")
    engine = step.engines()[0]
    active = step.active()
    batches = step.micro_batches(active)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine.pass_one(step.units(), step.targets(active), active, step.margin, 0.0)
    skipped = torch.zeros((), dtype=torch.bool, device="cuda")
    engine.pass_two(batches, active, step.margin, SGDStep(0.1, 0.9, 0.0), step.rounding, skipped)
    assert torch.cuda.max_memory_allocated() - before < 400e6
