"""The program on a CUDA device: runs from the first step to a prediction, and what the benchmarks measure."""

import json

import cv2
import numpy as np
import pytest
import torch

import fake_peer
import tiny
from megaclass.cli import main
from megaclass.doctor import machine
from megaclass.results.rows import read_rows

GPU = pytest.mark.gpu
RUNS = {
    "fp16": {"head": {"sample_rate": 0.5}, "precision": {"compute": "fp16"}},
    "bf16": {
        "head": {"storage": "int8_rowwise"},
        "precision": {"compute": "bf16"},
        "optim": {"ema_decay": 0.9},
    },
    "linear": {"head": {"kind": "linear"}, "augment": {"mixup": 0.2}, "optim": {"name": "lars"}},
}


@pytest.mark.parametrize("name", RUNS)
def test_trains_resumes_evaluates_and_predicts(name, tmp_path, capsys):
    task = "classification" if name == "linear" else "verification"
    records = str(tiny.write_records(tmp_path / "records", classes=24))
    evaluate = {"task": task, "path": records, "every": 5} | ({"pairs": 40} if task == "verification" else {})
    run = {"device": "cuda", "checkpoint_every": 5}
    recipe = tiny.recipe(tmp_path, run=run, evaluate=evaluate, speed={"compile": "none"}, **RUNS[name])
    assert main(["train", recipe]) == 0
    assert main(["train", recipe, "--resume", "--schedule.steps", "15"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 15 and result["final_loss"] < 10
    photograph = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "one.png"), photograph)
    capsys.readouterr()
    for words in (["evaluate", task, records], ["predict", str(tmp_path / "one.png")]):
        said = []
        for device in ("cuda", "cpu"):
            settings = [
                "--run-dir",
                str(tmp_path / "run"),
                "--run.device",
                device,
                "--precision.compute",
                "fp32",
            ]
            assert main([*words, *settings]) == 0
            said.append(capsys.readouterr().out)
        assert said[0] == said[1] != ""


def test_the_doctor_knows_the_gpu():
    (found,) = machine._PROBES["GPU"]()
    assert found.what == "GPU 0" and torch.cuda.get_device_name() in found.found


def rows_of(path, *words):
    assert main(["bench", *map(str, words), "--device", "cuda", "--output", str(path)]) == 0
    return read_rows(path)


HEAD = ["head", "--embedding-dim", 64, "--batch-size", 16, "--steps", 2, "--warmup", 1, "--precision", "bf16"]


def test_a_head_and_one_that_does_not_fit(tmp_path):
    ours, large = rows_of(tmp_path / "rows.jsonl", *HEAD, "--num-classes", "300,10B")
    assert ours.status == "ok" and ours.memory_mb["allocated"] > 0, ours.reason
    assert large.status == "oom" and "memory" in large.reason


@GPU
@pytest.mark.parametrize("storage", ["fp32", "int8_rowwise"])
def test_the_head_beside_a_peer(tmp_path, storage):
    peer = [
        "--peer",
        "arcface_torch",
        "--peer-path",
        fake_peer.write(tmp_path / "peer"),
        "--storage",
        storage,
    ]
    ours, other = rows_of(tmp_path / "rows.jsonl", *HEAD, "--num-classes", "40K", "--simulate-ranks", 4, *peer)
    assert (ours.status, other.status) == ("ok", "ok"), (ours.reason, other.reason)
    assert ours.work["limit_flops_per_second"] > 1e12
    assert other.case["precision"] == "fp16" and "malloc" not in other.case


def test_training_steps_are_timed_by_events_and_add_up(tmp_path):
    words = ["train", "--recipe", "glyphs", "--num-classes", 100, "-b", 8, "-i", 6, "--speed.compile", "none"]
    (row,) = rows_of(tmp_path / "rows.jsonl", *words, "--dtype", "tf32", "--head.kernels", "torch")
    assert row.status == "ok", row.reason
    whole_ms = 1000 * 6 * 8 / row.epochs[0]["total"]
    assert sum(row.samples_ms) == pytest.approx(whole_ms, rel=0.1)
    assert row.memory_mb["driver"] >= row.memory_mb["reserved"] >= row.memory_mb["allocated"] > 0


@pytest.mark.parametrize("engine", ["eager", pytest.param("compiled", marks=GPU), pytest.param("cudagraph", marks=GPU)])
def test_inference_in_every_engine(tmp_path, engine):
    words = ["infer", "--recipe", "glyphs", "-b", 8, "-i", 4, "--dtype", "bfloat16", "--engine", engine]
    for row in rows_of(tmp_path / "rows.jsonl", *words):
        assert row.status == "ok", row.reason
        assert row.step_ms["p50"] <= row.step_ms["p99"] and row.rates["total"] <= row.rates["compute"]


def test_the_loader_delivers_to_the_device(tmp_path):
    words = ["--workload", "faces", "--source", "records", "--images", 20, "--batch-size", 8, "--batches", 4]
    found = rows_of(tmp_path / "rows.jsonl", "loader", *words, "--rounds", 2, "--threads", 2)
    rows = {row.implementation: row for row in found}
    assert {row.status for row in found} <= {"ok", "skipped"}, [row.reason for row in found]
    ours, bare = rows["megaclass"], rows["simplejpeg"]
    assert (ours.status, ours.case["device"], bare.case["device"]) == ("ok", "cuda", "cpu")
    assert ours.memory_mb["allocated"] > 0
