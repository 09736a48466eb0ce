"""`megaclass bench head` as a user meets it."""

import os
from pathlib import Path

import pytest

import fake_peer
from megaclass.cli import main
from megaclass.results.rows import Row, RowWriter, read_rows

SMALL = ["--embedding-dim", "8", "--batch-size", "16", "--steps", "2", "--warmup", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def bench(*words):
    return main(["bench", "head", *SMALL, *map(str, words)])


def test_a_sweep_appends_a_row_for_each_case_and_goes_on_without_memory(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    before = Row(implementation="x", benchmark="head", case={}, status="skipped", reason="of an earlier day")
    with RowWriter(path) as writer:
        writer.write(before)
    assert bench("--num-classes", "1000B,0.05K", "--sample-rate", "0.5", "--output", path) == 0
    earlier, oom, ok = read_rows(path)
    assert earlier == before
    assert oom.status == "oom" and "memory" in oom.reason and oom.case["num_classes"] == 10**12
    assert ok.status == "ok" and ok.case["num_classes"] == 50 and len(ok.samples_ms) == 2
    assert ok.samples_per_second == pytest.approx(16 / ok.step_ms["p50"] * 1000, rel=1e-4)
    assert ok.memory_mb.keys() == {"allocated", "reserved", "driver", "process"}
    assert ok.work["limit_flops_per_second"] > 0 and ok.work["limit_bytes_per_second"] > 0
    assert ok.environment["torch_threads"] == ok.case["threads"] == 1
    said = capsys.readouterr().out
    assert "case 2 of 2" in said and "left" in said and "oom" in said and str(path) in said


@pytest.mark.dist
def test_two_processes_beside_two_of_a_peer(tmp_path, capsys):
    root = fake_peer.write(tmp_path / "peer")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    path = tmp_path / "rows.jsonl"
    assert bench("--num-classes", 50, "--world-size", 2, "--peer", "arcface_torch", "--peer-path", root,
                 "--peer-malloc", "tuned", "--output", path) == 0  # fmt: skip
    ours, peer = read_rows(path)
    assert (ours.status, peer.status) == ("ok", "ok"), (ours.reason, peer.reason)
    assert (ours.implementation, peer.implementation) == ("megaclass", "arcface_torch")
    assert ours.group == peer.group and ours.case["world_size"] == peer.case["world_size"] == 2
    assert peer.case["malloc"] == "tuned" and peer.environment["variables"]["MALLOC_MMAP_MAX_"] == "0"
    assert "MALLOC_MMAP_MAX_" not in ours.environment["variables"]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before  # no byte code either
    assert "times as fast as arcface_torch fp32/fp32 tuned" in capsys.readouterr().out


@pytest.mark.skipif("MEGACLASS_ARCFACE_TORCH" not in os.environ, reason="needs a copy of arcface_torch")
@pytest.mark.parametrize("words", [("--sample-rate", 0.5), ("--simulate-ranks", 4, "--margin", "cosface")])
def test_the_real_peer(tmp_path, words):
    path, folder = tmp_path / "rows.jsonl", os.environ["MEGACLASS_ARCFACE_TORCH"]
    assert (
        bench(
            "--num-classes", 100, "--peer", "arcface_torch", "--peer-path", folder, *words, "--output", path
        )
        == 0
    )
    assert [(row.status, row.case.get("malloc")) for row in read_rows(path)] == [
        ("ok", None), ("ok", "tuned"), ("ok", "untuned"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--num-classes", "many"], "--num-classes: 'many'"),
        (["--sample-rate", "2"], "--sample-rate"),
        (["--precision", "fp8"], "fp8"),
        (["--storage", "int9"], "int8"),
        (["--steps", "0"], "--steps"),
        (["--steps", "few"], "few"),
        (["--device", "tpu"], "--device: 'tpu'"),
        (["--timeout", "0"], "--timeout"),
        (["--world-size", "2", "--simulate-ranks", "2"], "--simulate-ranks"),
        (["--peer", "arcface_torch"], "--peer-path"),
        (["--peer", "arcface", "--peer-path", "."], "arcface_torch"),
        (["--peer", "arcface_torch", "--peer-path", "nowhere"], "partial_fc_v2.py"),
        (["--peer-path", "."], "--peer"),
        (["--peer-malloc", "some"], "untuned"),
        (["--output", "nowhere/rows.jsonl"], "nowhere/rows.jsonl"),
        (["--output", "notes.txt"], "notes.txt"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_touched(words, part, capfd):
    notes = Path("notes.txt")
    notes.write_text("not rows\n")
    assert bench(*words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("megaclass: error: ") and part in lines[0]
    assert [*Path().iterdir()] == [notes] and notes.read_text() == "not rows\n"


def test_there_is_one_benchmark(capfd):
    assert main(["bench"]) == main(["bench", "hed"]) == 2
    assert "did you mean 'head'" in capfd.readouterr().err


def test_ctrl_c_says_where_the_rows_are(monkeypatch, capfd):
    def interrupted(*args):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("megaclass.bench.sweep.measure", interrupted)
    assert bench("--output", "rows.jsonl") == 130
    assert "rows.jsonl" in capfd.readouterr().err
