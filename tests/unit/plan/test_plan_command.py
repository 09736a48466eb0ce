"""``megaclass plan`` as one types it, its tables in the docs, and what training says by it."""

import importlib.util
import json
from pathlib import Path

import pytest

import tiny
from megaclass.bench.train import TrainCase, job_of
from megaclass.cli import main
from megaclass.models import registry
from megaclass.models.convnet import ConvNet
from megaclass.plan import activations
from megaclass.plan.speed import Fit
from megaclass.train import foresight, loop

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "plan_tables.py"
ROWS = SCRIPT.parent / "results" / "plan-speed-cpu.jsonl"
SMALL = ["--classes", "1K", "--model.name", "convnet", "--data.global_batch_size", "64"]


def test_a_plan_is_told(refused, told, tmp_path):
    picture = tmp_path / "memory.png"
    words = [
        "plan",
        "faces_r50",
        *SMALL,
        *["--devices", "4", "--nodes", "2", "--device", "h100", "--samples", "64000"],
    ]
    out = " ".join(told(*words, "--picture", picture).split())
    parts = [
        "memory: activations",
        "memory: centres",
        "all-gather",
        "roofline",
        "20,000 steps",
        "head.storage fp32",
    ]
    assert not [part for part in parts if part not in out] and picture.stat().st_size > 1000
    refused([*words, "--picture", picture], "exists; name")


def test_what_cannot_fit_says_what_does(told):
    out = " ".join(told("plan", "faces_r50", *SMALL, "--classes", "1B", "--device", "a10", status=1).split())
    assert "does not fit; lower the classes to" in out and "head.storage int8_rowwise" in out
    words = ["plan", "faces_r50", *SMALL[:4], "--device", "a10", "--data.global_batch_size"]
    out = " ".join(told(*words, "1000000", status=1).split())
    batch = out.partition("lower data.global_batch_size to ")[2].partition(", ")[0]
    assert main([*words, batch.replace(",", "")]) == 0


@pytest.mark.parametrize(
    "words, told",
    [
        (["--device", "h10"], "unknown --device 'h10' (did you mean 'h100'?)"),
        (["--devices", "0"], "--devices: 0 is below 1"),
        (["--nodes", "0"], "--nodes: 0 is below 1"),
        (["--devices", "7"], "data.global_batch_size: 64 is not shared evenly by 7 parts"),
        (["--data.global_batch_size", "0"], "data.global_batch_size: 0 is below 1"),
        (["--from", "gone.jsonl"], "gone.jsonl"),
        (["--from", "cut.jsonl"], "cut.jsonl line 1: not a line of JSON"),
        (["--from", "zero.jsonl"], "--from: zero.jsonl holds no row of `bench train`"),
        (["--from", "empty.jsonl"], "--from: empty.jsonl holds no row of `bench train`"),
        (["--device", "v100", "--precision.compute", "bf16"], "v100 has no bf16"),
        (["--classes", "20M,40M"], "--classes: '20M,40M' is not a whole number"),
        (["--samples", "-5"], "--samples: -5 is below 1"),
        (["--device", "A100", "--from", str(ROWS)], "holds no row of `bench train` on cuda"),
        (["--picture", "gone/memory.png"], "--picture: gone is not a directory"),
        (["--picture", "memory.foo"], "--picture: memory.foo ends with none of .png, .svg"),
    ],
)
def test_bad_input_is_told_in_a_line(refused, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    Path("cut.jsonl").write_text('{"schema_version": 2, "implem\n')
    Path("empty.jsonl").write_text("")
    row = json.loads(ROWS.read_text().splitlines()[0])
    Path("zero.jsonl").write_text(json.dumps(row | {"step_ms": {"p50": 0.0}}))
    refused(["plan", "faces_r50", *SMALL, *words], told)


def test_a_fit_finds_the_terms_that_made_the_rows():
    limits = {"limit_flops_per_second": 1e11, "limit_bytes_per_second": 1e10}
    truth = Fit((2e-11, 3e-10, 1.5), tuple(limits.values()), 3)
    shared = {"recipe": "faces_r50", "backbone": "convnet", "precision": "fp32", "device": "cpu"}
    sizes = ((16, 1000), (64, 1000), (16, 100_000))
    cases = [TrainCase(**shared, global_batch_size=batch, num_classes=classes) for batch, classes in sizes]
    cases = [case.resolved() for case in cases]
    rows = [(job_of(case), truth.step_s(job_of(case)), limits) for case in cases]
    assert Fit.of(rows).seconds == pytest.approx(truth.seconds)


def test_the_tables_of_the_pages_are_what_plan_says():
    spec = importlib.util.spec_from_file_location("plan_tables", SCRIPT)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert "plan_tables.py: " in text and tables.written(text) == text, page


def test_training_tells_and_refuses(refused, told, tmp_path, monkeypatch):
    recipe = tiny.recipe(tmp_path, schedule={"steps": 1})
    assert "planned: " in told("train", recipe)
    monkeypatch.setattr(foresight, "available_memory", lambda: 350_000)
    words = ["train", recipe, "--run.output", tmp_path / "other"]
    refused(words, "need ", "350.0 kB are there for it; lower data.global_batch_size to ")


def test_a_backbone_that_cannot_be_planned_is_trained(tmp_path, monkeypatch, capsys, caplog):
    class Reads(ConvNet):
        def forward(self, images):
            return super().forward(images if float(images.mean()) > 1e9 else images * 1.0)

    monkeypatch.setitem(registry.BACKBONES, "convnet", Reads)
    activations._counted.cache_clear()
    assert main(["train", tiny.recipe(tmp_path, schedule={"steps": 1})]) == 0
    activations._counted.cache_clear()
    assert caplog.text.count("memory is not planned") == 1 and "planned: " not in capsys.readouterr().out


def test_memory_that_runs_out_is_a_line_with_the_parts(refused, tmp_path, monkeypatch):
    def runs_out(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(loop, "fit", runs_out)
    refused(["train", tiny.recipe(tmp_path)], "out of memory (DefaultCPUAllocator", "activations ", "lower ")
