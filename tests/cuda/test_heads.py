"""The head on a CUDA device: every setting against the dense fp64 oracle, or near exact products where it rounds."""

import dataclasses
from itertools import product

import pytest

from head_reference import Case, assert_agrees, relative_error, train_oracle, train_ours
from megaclass.heads.margins import ArcFace, CosFace

MARGINS = {"arcface": ArcFace(), "exact": ArcFace(gradient="exact"), "cosface": CosFace(filter_threshold=0.5)}
EXACT = {
    f"{kernels}-{margin}-{rate}": Case(
        device="cuda", kernels=kernels, margin=MARGINS[margin], sample_rate=rate, accumulation=2, steps=6
    )
    for kernels, margin, rate in product(("torch", "triton"), MARGINS, (1.0, 0.4))
}


@pytest.mark.parametrize("case", EXACT.values(), ids=EXACT)
def test_agrees_with_the_oracle(case):
    ours = train_ours(case)
    assert_agrees(ours, train_oracle(case, ours.samples))
    on_cpu = train_ours(dataclasses.replace(case, device="cpu", kernels="torch"))
    assert [s if s is None else s.tolist() for s in ours.samples] == [
        s if s is None else s.tolist() for s in on_cpu.samples
    ]


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("storage", ["fp32", "bf16", "int8_rowwise"])
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_rounded_products_and_rows_stay_near(kernels, precision, storage, rate):
    case = Case(
        device="cuda", kernels=kernels, precision=precision, storage=storage, sample_rate=rate, steps=3
    )
    ours, exact = (
        train_ours(case),
        train_ours(Case(kernels="torch", storage=storage, sample_rate=rate, steps=3)),
    )
    assert relative_error(ours.centres, exact.centres) < 5e-2
    assert ours.losses == pytest.approx(exact.losses, rel=5e-2)
