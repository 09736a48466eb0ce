"""What Triton and ptxas make of the head's kernels for an H100 and an A100; no GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def compiled(*arguments: object) -> str:
    """A process of its own: this one may run the kernels in Triton's interpreter."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compiled.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("capability", "dim", "precision", "storage", "rate", "product", "reloads"),
    [
        (90, 512, "bf16", "fp32", 1, "HGMMA", 0),
        (90, 512, "bf16", "int8_rowwise", 0.1, "HGMMA", 0),
        (80, 512, "bf16", "bf16", 0.1, "HMMA", 0),
        pytest.param(90, 128, "tf32", "fp32", 0.1, "HGMMA", 0, marks=pytest.mark.slow),
        pytest.param(90, 256, "bf16", "bf16", 0.1, "HGMMA", 8, marks=pytest.mark.slow),
        pytest.param(90, 1024, "bf16", "fp32", 0.1, "HGMMA", 40, marks=pytest.mark.slow),
        pytest.param(80, 256, "tf32", "fp32", 1, "HMMA", 0, marks=pytest.mark.slow),
    ],
)
def test_the_inner_loops(
    capability: int, dim: int, precision: str, storage: str, rate: float, product: str, reloads: int
) -> None:
    """Matrix instructions that wait for nothing, no exponential twice; and steps compile nothing again."""
    unit, *passes = map(json.loads, compiled(capability, dim, precision, storage, rate).splitlines())
    assert unit["spilled"] == 0 and [one["kernel"] for one in passes] == ["pass 1", "pass 2"]
    for one in passes:
        assert one["product"].startswith(product) and not one["serialised"]
        assert one["reloads"] <= reloads
        assert one["exponentials"] == one["rows"] * one["turn"] // (32 * one["warps"])


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ((75, 512, "bf16"), "need compute capability 8.0, this GPU has 7.5"),
        pytest.param((90, 1024, "tf32"), "spills", marks=pytest.mark.slow),
    ],
)
def test_what_a_gpu_cannot_hold_is_refused(case: tuple[int, int, str], reason: str) -> None:
    said = compiled(*case, "fp32")
    assert said.startswith("refused") and reason in said
