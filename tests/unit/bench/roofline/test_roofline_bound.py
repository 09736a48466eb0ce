"""Bounds, the words that ask for them, and what rows reach of them."""

import re

import pytest

from made_rows import LAPTOP
from megaclass.bench.infer.cases import InferCase
from megaclass.bench.infer.cases import resolved as resolved_infer
from megaclass.bench.roofline import machines
from megaclass.bench.roofline.bound import OPTIMIZER, bound
from megaclass.bench.roofline.machines import MACHINES, Peaks
from megaclass.bench.roofline.plan import config_of
from megaclass.bench.roofline.reached import reached
from megaclass.bench.roofline.trace import trace
from megaclass.bench.train.cases import TrainCase, resolved
from megaclass.cli import main
from megaclass.models.registry import build_backbone
from megaclass.results.rows import Row, RowWriter, read_rows, timed

SMALL = ["--backbone", "convnet", "--image-size", "16"]
CONVNET = config_of("convnet", 16)
NO_LIMIT = 1e30


def peaks(flops, bandwidth):
    return Peaks("made up", {"fp32": flops, "bf16": flops}, bandwidth, "made up")


def told(*words):
    return main(["bench", "roofline", *SMALL, *words])


def test_arithmetic_alone():
    flops = sum(op.flops for op in trace(CONVNET, "bf16"))
    for ops in ("unfused", "fused"):
        one = bound(CONVNET, "bf16", 8, peaks(1e9, NO_LIMIT))
        total = one.total(getattr(one, ops))
        assert total.seconds == pytest.approx(8 * flops / 1e9) and total.memory_seconds == pytest.approx(
            0, abs=1e-9
        )
    assert one.plain_seconds == pytest.approx(8 * flops / 1e9)


def test_memory_alone():
    ops = trace(CONVNET, "fp32")
    backbone = build_backbone("convnet", image_size=16, width=64, embedding_dim=512)
    parameters = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    image, step = sum(op.moved.image for op in ops), sum(op.moved.step for op in ops) + 20 * parameters
    one = bound(CONVNET, "fp32", 8, peaks(NO_LIMIT, 1e6))
    total = one.total(one.unfused)
    assert total.seconds == total.memory_seconds == pytest.approx((8 * image + step) / 1e6)
    assert [share.bytes for share in one.by("kind", one.unfused) if share.name == OPTIMIZER] == [
        20 * parameters
    ]


def test_layers_add_up():
    one = bound(CONVNET, "bf16", 8192, MACHINES["a100"])
    for ops in (one.unfused, one.fused):
        total = one.total(ops)
        for what in ("stage", "kind"):
            shares = one.by(what, ops)
            assert sum(share.seconds for share in shares) == pytest.approx(total.seconds)
            assert sum(share.bytes for share in shares) == pytest.approx(total.bytes)
            assert sum(share.all_flops for share in shares) == pytest.approx(total.all_flops)
    assert one.plain_seconds < one.total(one.fused).seconds < one.total(one.unfused).seconds


def test_a_used_model_moves_less_and_has_its_weights_in_16_bits():
    one, full = (bound(CONVNET, kind, 1, peaks(NO_LIMIT, 1e9)) for kind in ("bf16", "fp32"))
    assert one.total(one.inference).bytes == pytest.approx(full.total(full.inference).bytes / 2)
    assert one.total(one.inference).all_flops == one.total(one.fused).flops["forward"]


def row(benchmark, case, step_ms, **environment):
    samples = [step_ms] * 3
    return Row(
        implementation="megaclass",
        benchmark=benchmark,
        case=case.parameters() | {"channels_last": True},
        status="ok",
        environment=LAPTOP | environment,
        **timed(samples, 8),
    )


def training(**given):
    common = {"recipe": "faces_r50", "backbone": "convnet", "image_size": 16, "global_batch_size": 8}
    return resolved(TrainCase(**common | {"num_classes": 1000, "precision": "bf16"} | given))


def test_a_row_of_training_has_the_head_in_its_bound():
    case = training(sample_rate=0.5)
    found = reached(row("train", case, 40.0), peaks(1e9, NO_LIMIT))
    backbone = 8 * sum(op.flops for op in trace(CONVNET, "bf16"))
    head = 8 * 8 * 512 * 1000 * 0.5  # 8 B D operations for each scored class
    assert found.seconds == pytest.approx((backbone + head) / 1e9)
    assert found.head_seconds == pytest.approx(head / 1e9)
    assert found.fraction == pytest.approx(1000 * found.seconds / 40)
    moved = reached(row("train", case, 40.0), peaks(NO_LIMIT, 1e9))
    assert moved.head_seconds == pytest.approx(2 * 2 * 4 * 512 * 500 / 1e9)  # centres and momentum, both ways


def test_one_rank_of_several_has_its_share_of_the_classes_and_rows():
    alone = reached(row("train", training(), 40.0), peaks(1e9, 1e9))
    case = training(simulate_ranks=4, global_batch_size=32, num_classes=4000)
    one_of_four = reached(row("train", case, 40.0), peaks(1e9, 1e9))
    shares = [found.bound.total(found.bound.fused, "head").all_flops for found in (alone, one_of_four)]
    assert shares[1] - shares[0] == pytest.approx(
        3 * 8 * 512 * 1000
    )  # of an image: 4,000 classes instead of 1,000
    assert alone.seconds < one_of_four.seconds


def test_recomputed_activations_are_no_needed_work():
    settings = {"model.checkpoint_activations": True}
    common = {"backbone": "iresnet18", "image_size": 32}
    plain, again = (
        reached(row("train", training(**common, settings=given), 40.0), peaks(1e9, 1e9))
        for given in ({}, settings)
    )
    assert plain.seconds == again.seconds


def test_a_row_of_inference_runs_forward_alone():
    case = resolved_infer(
        InferCase(backbone="resnet18", image_size=32, batch_size=4, num_classes=10, precision="fp32")
    )
    found = reached(row("infer", case, 40.0), peaks(1e9, NO_LIMIT))
    forward = sum(op.flops for op in trace(config_of("resnet18", 32), "fp32") if op.direction == "forward")
    assert found.seconds == pytest.approx(4 * (forward + 2 * 512 * 10) / 1e9)


def test_rows_that_have_no_bound():
    case = training()
    assert reached(row("head", case, 1.0), peaks(1e9, 1e9)) is None
    assert reached(row("train", training(precision="fp16"), 1.0), peaks(1e9, 1e9)) is None
    failed = Row(
        implementation="megaclass", benchmark="train", case=case.parameters(), status="oom", reason="full"
    )
    assert reached(failed, peaks(1e9, 1e9)) is None


def test_the_verb(tmp_path, capsys):
    rows, kept = tmp_path / "rows.jsonl", tmp_path / "bounds.jsonl"
    with RowWriter(rows) as writer:
        writer.write(row("train", training(), 40.0))
    assert (
        told(
            "-b",
            "8,16",
            "--peak-tflops",
            "1",
            "--bandwidth-gbs",
            "10",
            "--rows",
            str(rows),
            "--output",
            str(kept),
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "convnet, 16 px, bf16, batch 16; given: 1 TFLOP/s, 10 GB/s" in " ".join(shown.split())
    assert "optimizer" in shown and "inference" in shown and re.search(r"\d%", shown)
    assert [one.case["batch_size"] for one in read_rows(kept)] == [8, 16]
    for one in read_rows(kept):
        work = one.work
        assert work["peak_flops_per_second"] == 1e12 and work["peak_bytes_per_second"] == 1e10
        assert 0 < work["plain_ms"] < work["fused_ms"] < work["unfused_ms"]


def test_peaks_of_this_machine_are_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machines.limits, "product_ms", lambda precision, side, device: 1000.0)
    monkeypatch.setattr(machines.limits, "copy_bytes_per_second", lambda device: 5e9)
    assert told("--device", "cpu", "--dtype", "float32") == 0
    assert "0.01718 TFLOP/s, 5 GB/s" in " ".join(capsys.readouterr().out.split())
    rows = tmp_path / "rows.jsonl"
    with RowWriter(rows) as writer:
        writer.write(row("train", training(), 40.0, cpu="another one"))
    assert told("--device", "cpu", "--rows", str(rows)) == 2
    assert "rows of another one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--machine", "h10"], "unknown machine 'h10' (did you mean 'h100'?)"),
        (["--machine", "v100"], "no peak in bf16 is known of v100"),
        (["--machine", "h100", "--peak-tflops", "1"], "give one"),
        (["--peak-tflops", "1"], "belong together"),
        (["--peak-tflops", "1", "--bandwidth-gbs", "-1"], "positive"),
        (["--machine", "h100", "-b", "0"], "--batch-size: 0"),
        (["--machine", "h100", "--backbone", "convnetz"], "unknown backbone"),
        (["--machine", "h100", "--dtype", "int8"], "unknown --dtype"),
        (["--machine", "h100", "--rows", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ],
)
def test_words_that_make_no_sense(words, message, capsys):
    assert told(*words) == 2
    assert message in capsys.readouterr().err


def test_every_machine_says_where_its_numbers_are_from():
    for name, found in MACHINES.items():
        assert name == found.name and found.source and min(found.flops_per_second.values()) > 1e13
        assert 5e11 < found.bytes_per_second < 1e13


@pytest.mark.parametrize(
    ("name", "size", "batch", "fastest"),
    [("iresnet50", 112, 1024, (9309, 11932)), ("resnet50", 224, 256, (6842, 9828))],
)
def test_the_figures_of_the_page(name, size, batch, fastest):
    """docs/performance.md says them in its text."""
    one = bound(config_of(name, size), "bf16", batch, MACHINES["h100-measured"])
    assert tuple(round(batch / one.total(ops).seconds) for ops in (one.unfused, one.fused)) == fastest
