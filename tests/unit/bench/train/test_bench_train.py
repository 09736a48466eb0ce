"""`megaclass bench train` as a user meets it, on a network that is small enough for a test."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from megaclass.bench.sweep import measure
from megaclass.bench.old_train.cases import TrainCase, resolved
from megaclass.bench.old_train.plan import plan_of
from megaclass.cli import main
from megaclass.results.rows import read_rows

SMALL = ["--recipe", "glyphs", "--image-size", "16", "--num-classes", "50", "-b", "4", "-i", "3", "--dtype", "float32",
         "--device", "cpu"]  # fmt: skip
SOURCE = str(Path(__file__).parents[4] / "src")
CASE = TrainCase(recipe="glyphs", image_size=16, num_classes=50, global_batch_size=4, iterations=2)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def bench(*words):
    return main(["bench", "train", *SMALL, *map(str, words)])


@pytest.mark.dist
def test_a_sweep_over_devices_with_weak_scaling(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert bench("-n", "1,2", "-e", 3, "--threads", 1, "--output", path) == 0
    one, two = read_rows(path)
    for row in (one, two):
        assert row.status == "ok", row.reason
        assert len(row.samples_ms) == len(row.data_ms) == 6 and len(row.epochs) == 2
        assert all(data <= whole for data, whole in zip(row.data_ms, row.samples_ms, strict=True))
        assert row.rates["total"] < row.rates["compute"] < row.rates["data"]
        assert (
            min(e["total"] for e in row.epochs) <= row.rates["total"] <= max(e["total"] for e in row.epochs)
        )
        assert row.memory_mb["process"] > 0 and row.memory_mb["driver"] is None
        assert row.case["embedding_dim"] == 256 and row.case["kernels"] == "torch"
        assert 0 < row.work["flops_per_second"] < row.work["limit_flops_per_second"]
        assert row.result["final_loss"] > 0
    assert (one.case["global_batch_size"], two.case["global_batch_size"]) == (4, 8)
    assert two.work["flops"] == 2 * one.work["flops"] and two.case["collectives"] == "included"
    assert "weak" in capsys.readouterr().out

    assert bench("-n", "1,2", "-e", 3, "--threads", 1, "--output", path) == 0  # once more: nothing to do
    assert len(read_rows(path)) == 2 and "2 of 2 cases are in" in capsys.readouterr().out
    assert bench("-n", "1", "-e", 3, "--threads", 1, "--output", path, "--again") == 0
    assert len(read_rows(path)) == 3


def test_one_rank_of_several(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert (
        bench("--simulate-ranks", 4, "--sample-rate", "0.5", "--parallelism", "model,data", "--output", path)
        == 0
    )
    for row in read_rows(path):
        assert row.status == "ok", row.reason
        assert row.case["collectives"] == "none" and row.case["global_batch_size"] == 16


def test_images_of_ones_own(tmp_path, tiny_folder):
    path = tmp_path / "rows.jsonl"
    words = [
        "--recipe",
        "glyphs",
        "--image-size",
        "16",
        "-b",
        "4",
        "-i",
        "2",
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    assert main(["bench", "train", *words, "--data-root", str(tiny_folder), "--output", str(path)]) == 0
    (row,) = read_rows(path)
    assert row.status == "ok", row.reason
    assert row.case["num_classes"] == 6 and row.case["data"] == str(tiny_folder)


@pytest.fixture
def tiny_folder(tmp_path):
    import tiny

    tiny.write_records(tmp_path / "data" / "train")
    return tmp_path / "data"


def watcher(on_step=lambda done, total: None):
    return SimpleNamespace(begins=lambda *what: None, step=on_step)


def test_a_case_that_is_killed_is_named_with_its_signal_and_the_sweep_goes_on():
    killed = []

    def kill(done, total):
        if not killed:
            killed.extend(child.pid for child in psutil.Process().children())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    plan = [plan_of(resolved(CASE)), plan_of(resolved(replace(CASE, seed=1)))]
    (first,), (second,) = measure(plan, 120.0, watcher(kill))
    assert killed and first.status == "failed" and "SIGKILL" in first.reason
    assert second.status == "ok", second.reason


def test_a_batch_that_does_not_fit_is_a_row_without_memory():
    # 100,000 images of 224 px: 15 GB in bytes, 60 in numbers, 2,500 in activations.
    large = replace(
        CASE, recipe="resnet50_imagenet", image_size=224, num_classes=10, global_batch_size=100_000
    )
    (row,) = next(measure([plan_of(resolved(large))], 240.0, watcher()))
    assert row.status == "oom", row.reason
    assert not row.step_ms and row.reason


def test_a_step_that_is_left_out_fails_the_case():
    bad = replace(CASE, settings={"optim.lr": 1e30, "optim.clip_grad_norm": 0.0}, iterations=4)
    (row,) = next(measure([plan_of(resolved(bad))], 120.0, watcher()))
    assert row.status == "failed" and "not finite" in row.reason and "optim.lr" in row.reason


def test_a_sweep_that_is_killed_leaves_no_process_behind(tmp_path):
    command = [sys.executable, "-P", "-m", "megaclass", "bench", "train", *SMALL, "-i", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": SOURCE})
    deadline = time.monotonic() + 120
    while not (found := busy(psutil.Process(process.pid).children())) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(found, timeout=20)
    assert found and not left


def busy(processes):
    """Those that have computed for a while: their first step has begun."""
    return [process for process in processes if process.cpu_times().user > 6]


def test_ctrl_c_and_the_same_command_again_goes_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    words = [*SMALL, "--seed", "0", "--sample-rate", "1,0.5", "-i", "20", "--output", str(path)]
    command = [sys.executable, "-P", "-m", "megaclass", "bench", "train", *words]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": SOURCE}
    )
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # in the middle of the second case
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said and "the same command goes on" in said
    (first,) = read_rows(path)
    assert main(["bench", "train", *words]) == 0
    again, second = read_rows(path)
    assert again == first and second.status == "ok" and second.case["sample_rate"] == 0.5
