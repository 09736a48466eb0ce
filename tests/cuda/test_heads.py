"""The head on a CUDA device: every setting against the dense fp64 oracle, or near exact products where it rounds."""

from dataclasses import replace
from itertools import product

import pytest

from head_reference import Case, assert_agrees, relative_error, train_oracle, train_ours
from megaclass.heads.margins import ArcFace, CosFace

KERNELS, RATES = ("torch", "triton"), (1.0, 0.4)
MARGINS = {"arcface": ArcFace(), "exact": ArcFace(gradient="exact"), "cosface": CosFace(filter_threshold=0.5)}
ROUNDING = (("tf32", "fp32"), ("bf16", "bf16"), ("bf16", "int8_rowwise"))


@pytest.mark.parametrize("kernels, margin, rate", [*product(KERNELS, MARGINS, RATES)])
def test_agrees_with_the_oracle(kernels, margin, rate):
    exact = Case(margin=MARGINS[margin], sample_rate=rate, accumulation=2, steps=5)
    ours, on_cpu = train_ours(replace(exact, device="cuda", kernels=kernels)), train_ours(exact)
    assert_agrees(ours, train_oracle(exact, on_cpu.samples))
    for sample, other in zip(ours.samples, on_cpu.samples, strict=True):
        assert sample is other is None or sample.tolist() == other.tolist()


@pytest.mark.parametrize("kernels, rounding, rate", [*product(KERNELS, ROUNDING, RATES)])
def test_rounded_products_and_rows_stay_near(kernels, rounding, rate):
    precision, storage = rounding
    exact = Case(storage=storage, sample_rate=rate, steps=3)
    ours = train_ours(replace(exact, device="cuda", kernels=kernels, precision=precision))
    wanted = train_ours(exact)
    assert relative_error(ours.centres, wanted.centres) < 5e-2
    assert ours.losses == pytest.approx(wanted.losses, rel=5e-2)
