"""What differs on a CUDA device: the head against the oracle, and a whole run in every precision."""

import dataclasses
import json

import pytest
import torch

import tiny
from head_reference import Case, assert_agrees, train_oracle, train_ours
from megaclass.cli import main
from megaclass.heads.margins import ArcFace, CosFace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CASES = {
    "full": Case(device="cuda"),
    "exact": Case(device="cuda", margin=ArcFace(gradient="exact"), accumulation=4),
    "sampled": Case(device="cuda", margin=CosFace(), sample_rate=0.4, accumulation=2),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_head_agrees_with_the_oracle(case: Case) -> None:
    ours = train_ours(case)
    assert_agrees(ours, train_oracle(case, ours.samples))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_rounded_products_stay_near(precision: str) -> None:
    case = Case(device="cuda", precision=precision, steps=3)
    ours = train_ours(case)
    assert_agrees(ours, train_oracle(case, ours.samples), tolerance=5e-2)


def test_gpu_and_cpu_draw_the_same_samples() -> None:
    case = Case(device="cuda", sample_rate=0.3, steps=3)
    on_gpu, on_cpu = train_ours(case), train_ours(dataclasses.replace(case, device="cpu"))
    for a, b in zip(on_gpu.samples, on_cpu.samples, strict=True):
        assert a is not None and b is not None and a.tolist() == b.tolist()


@pytest.mark.parametrize("compute", ["fp32", "tf32", "bf16", "fp16"])
def test_trains_and_resumes(compute: str, tmp_path) -> None:
    recipe = tiny.recipe(
        tmp_path,
        run={"device": "cuda", "checkpoint_every": 5},
        precision={"compute": compute},
        head={"sample_rate": 0.5},
    )
    assert main(["train", recipe]) == 0
    assert main(["train", recipe, "--resume", "--schedule.steps", "15"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 15 and result["final_loss"] < 10
