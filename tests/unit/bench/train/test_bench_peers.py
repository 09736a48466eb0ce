"""`megaclass bench train --peer` and `--set` as a user meets them, with a stand-in for the peer's code."""

import pytest

import fake_peer
from megaclass.cli import main
from megaclass.report.comparison import compare_rows
from megaclass.results.rows import read_rows

FACES = ["--recipe", "faces_r50", "--backbone", "mbf", "--num-classes", "50", "-b", "4", "-i", "1", "-e", "3",
         "--dtype", "bfloat16", "--device", "cpu"]  # fmt: skip
PHOTOGRAPHS = ["--backbone", "resnet18", "--num-classes", "10", "--image-size", "32", "-b", "4", "-i", "1", "-e", "3",
               "--dtype", "float32", "--device", "cpu", "--threads", "1"]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def bench(*words):
    return main(["bench", "train", *map(str, words)])


@pytest.mark.dist
def test_two_processes_beside_two_of_a_peers_loop(tmp_path, capsys):
    root = fake_peer.write(tmp_path / "peer")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    words = [*FACES, "-n", 2, "--peer", "arcface_torch,pytorch", "--peer-path", root, "-o", "rows.jsonl"]
    assert bench(*words) == 0
    ours, peer, plain = rows = read_rows("rows.jsonl")
    assert [row.implementation for row in rows] == ["megaclass", "arcface_torch", "pytorch"]
    assert (ours.status, peer.status) == ("ok", "ok"), (ours.reason, peer.reason)
    assert plain.status == "skipped" and "linear head" in plain.reason
    assert ours.group == peer.group and len(ours.samples_ms) == len(peer.samples_ms) == 2
    assert len({row.key for row in rows}) == 3
    assert (ours.case["precision"], peer.case["precision"]) == ("bf16", "fp32") and peer.case[
        "malloc"
    ] == "tuned"
    assert peer.environment["variables"]["MALLOC_MMAP_MAX_"] == "0"
    assert 0 < peer.work["flops"] < ours.work["flops"]  # three products of a class, ours takes four
    assert peer.result["final_loss"] > 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before  # no byte code either
    said = capsys.readouterr().out
    assert "times as fast as arcface_torch fp32" in said and "left out" not in said

    assert bench(*words) == 0  # once more: nothing to do
    assert read_rows("rows.jsonl") == rows and "1 of 1 cases are in" in capsys.readouterr().out
    pairs = compare_rows(rows, rows).pairs
    assert [(p.earlier.implementation, p.later.implementation) for p in pairs] == [
        ("megaclass", "megaclass"), ("arcface_torch", "arcface_torch"),
    ]  # fmt: skip


@pytest.mark.slow
def test_settings_take_turns_beside_a_plain_loop(capsys):
    swept = ["--set", "precision.channels_last=true,false", "--one-at-a-time"]
    assert bench(*PHOTOGRAPHS, *swept, "--peer", "pytorch", "-o", "rows.jsonl") == 0
    rows = read_rows("rows.jsonl")
    assert [row.status for row in rows] == ["ok"] * 3, [row.reason for row in rows]
    assert [row.implementation for row in rows] == ["megaclass", "megaclass", "pytorch"]
    key = "precision.channels_last"
    assert [row.case["settings"] for row in rows] == [{key: True}, {key: False}, {}]
    assert [row.case["channels_last"] for row in rows] == [True, False, True]
    assert rows[2].case["network"] and len({row.group for row in rows}) == 1
    said = capsys.readouterr().out
    assert f"megaclass {key}=false: " in said and "spread" in said
    assert "megaclass fp32, channels_last yes: " in said and "times as fast as pytorch fp32" in said
