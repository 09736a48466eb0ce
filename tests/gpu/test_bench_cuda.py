"""`megaclass bench head` on a CUDA device."""

import pytest
import torch

import fake_peer
from megaclass.cli import main
from megaclass.results.rows import read_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("storage", ["fp32", "int8_rowwise"])
def test_ours_beside_a_peer(tmp_path, storage):
    root, path = fake_peer.write(tmp_path / "peer"), tmp_path / "rows.jsonl"
    words = ["--num-classes", "40K", "--batch-size", "64", "--steps", "3", "--precision", "bf16", "--storage", storage,
             "--simulate-ranks", "4", "--device", "cuda", "--peer", "arcface_torch", "--peer-path", str(root),
             "--output", str(path)]  # fmt: skip
    assert main(["bench", "head", *words]) == 0
    ours, peer = read_rows(path)
    assert (ours.status, peer.status) == ("ok", "ok"), (ours.reason, peer.reason)
    assert ours.memory_mb["allocated"] > 0 and ours.work["limit_flops_per_second"] > 1e12
    assert peer.case["precision"] == "fp16" and "malloc" not in peer.case


def test_no_memory_is_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    words = ["--num-classes", "10B", "--steps", "1", "--device", "cuda", "--output", str(path)]
    assert main(["bench", "head", *words]) == 0
    (row,) = read_rows(path)
    assert row.status == "oom" and "memory" in row.reason


def rows_of(path, *words):
    assert main(["bench", *map(str, words), "--device", "cuda", "--output", str(path)]) == 0
    return read_rows(path)


def test_training_steps_are_timed_by_events_and_add_up(tmp_path):
    words = ["train", "--recipe", "glyphs", "--num-classes", "1K", "-b", 64, "-i", 20]
    for row in rows_of(tmp_path / "rows.jsonl", *words, "--dtype", "float16,tf32"):
        assert row.status == "ok", row.reason
        whole_ms = 1000 * 20 * 64 / row.epochs[0]["total"]
        assert sum(row.samples_ms) == pytest.approx(whole_ms, rel=0.1)
        assert row.memory_mb["driver"] > row.memory_mb["reserved"] >= row.memory_mb["allocated"] > 0


def test_one_rank_of_eight_and_a_batch_that_does_not_fit(tmp_path):
    words = ["train", "--recipe", "faces_r50", "--num-classes", "80K", "-i", 3, "--dtype", "float16"]
    (share,) = rows_of(tmp_path / "share.jsonl", *words, "-b", 16, "--simulate-ranks", 8)
    assert share.status == "ok", share.reason
    (large,) = rows_of(tmp_path / "large.jsonl", *words, "-b", 10240, "--backbone", "iresnet300")
    assert large.status == "oom", large.reason


@pytest.mark.parametrize("engine", ["eager", "compiled", "cudagraph"])
def test_inference_in_every_engine(tmp_path, engine):
    words = ["infer", "--image-size", 64, "-b", "1,32", "-i", 10, "--dtype", "float16", "--engine", engine]
    for row in rows_of(tmp_path / "rows.jsonl", *words):
        assert row.status == "ok", row.reason
        assert row.step_ms["p50"] <= row.step_ms["p99"] and row.rates["total"] <= row.rates["compute"]


def test_a_suite_scaled_to_this_gpu(tmp_path):
    words = ["bench", "suite", "resnet50-abci", "--fit", "--minutes", "1"]
    assert main([*words, "--device", "cuda", "--output", str(tmp_path / "out")]) == 0
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    assert {row.status for row in rows} <= {"ok", "skipped"} and any(row.status == "ok" for row in rows)
    assert (tmp_path / "out" / "report.html").stat().st_size > 0
