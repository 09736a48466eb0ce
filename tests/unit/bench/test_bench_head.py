"""`megaclass bench head`: its cases, its steps, and the command as a user meets it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fake_peer
from made_rows import write_rows
from megaclass.bench.head import HeadCase, Steps, work
from megaclass.bench.train import TrainCase
from megaclass.cli import main
from megaclass.config import options
from megaclass.heads.storage import STORAGES
from megaclass.parallel.groups import Simulated, World
from megaclass.results.rows import Row, read_rows

SMALL = ["--embedding-dim", "8", "--batch-size", "16", "--steps", "2", "--warmup", "1", "--device", "cpu"]
WORLD = World(0, 1, torch.device("cpu"))


def bench(*words):
    return main(["bench", "head", *SMALL, *map(str, words)])


def test_choices_are_those_of_the_head():
    fields = HeadCase.__dataclass_fields__
    for name in ("precision", "storage", "kernels"):
        assert {*fields[name].metadata["choices"]} == {*options()[f"head.{name}"].metadata["choices"]}
    assert {*fields["storage"].metadata["choices"]} == {*STORAGES}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (HeadCase(), ""),
        (HeadCase(batch_size=7, simulate_ranks=2), "does not divide"),
        (HeadCase(device="cuda", world_size=2), "GPUs"),
        (HeadCase(world_size=1000, batch_size=1000), "too many"),
        (HeadCase(precision="tf32"), "CUDA"),
        (TrainCase(global_batch_size=7, simulate_ranks=2), "does not divide"),
        (TrainCase(precision="fp16", tf32=True), "CUDA"),
    ],
)
def test_what_a_machine_cannot_do_is_skipped(case, reason):
    found = (case if case.device == "cuda" else replace(case, device="cpu")).why_skipped(gpus=1)
    assert reason in found and bool(found) == bool(reason)


def test_the_work_of_a_step_is_what_its_processes_do():
    case = HeadCase(num_classes=1000, embedding_dim=8, batch_size=4, sample_rate=0.5, simulate_ranks=2)
    assert work("megaclass", case) == {"flops": 8 * 4 * 8 * 250, "bytes": 5 * 4 * 8 * 250}
    narrow = HeadCase(num_classes=1000, embedding_dim=8, batch_size=4, storage="int8_rowwise")
    assert work("megaclass", narrow)["bytes"] == 3 * 8 * 1000
    assert work("arcface_torch", case) == {"flops": 6 * 4 * 8 * 250, "bytes": 4 * 8 * (2 * 250 + 6 * 500)}


def test_a_simulated_group_gives_what_a_rank_of_many_would_get():
    tensor = torch.arange(8.0).reshape(4, 2)
    group = Simulated(4, lambda tensor_b: torch.cat([tensor_b] * 4))
    assert group.share(401) == (0, 101) and group.all_reduce_(tensor.clone(), "mean").equal(tensor)
    assert group.all_gather_rows(tensor[:1]).tolist() == [[0, 1]] * 4
    assert group.reduce_scatter_rows(tensor).tolist() == [[0, 1]]


@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
def test_a_simulated_rank_holds_its_shard_and_sees_the_whole_batch(sample_rate):
    case = HeadCase(num_classes=401, embedding_dim=8, batch_size=16, simulate_ranks=4, sample_rate=sample_rate)
    steps = Steps(case, WORLD, "megaclass", {})
    assert steps.head.class_range == (0, 101)
    answer = steps.turn(0)
    assert answer["ms"] > 0 and answer["loss"] > 0 and steps.head.shard.steps == 1
    assert steps._embeddings_bD.grad.shape == (4, 8)
    unit_BD, labels_B = steps._gathered(steps._embeddings_bD), steps._gathered(steps._labels_b)
    assert unit_BD.shape == (16, 8) and labels_B.equal(steps._whole[1])
    assert unit_BD[4:].norm(dim=1).allclose(torch.ones(12))
    assert steps.facts() == {"kernels": "torch"}


def test_inputs_depend_on_seed_and_step_alone():
    case = HeadCase(num_classes=1000, batch_size=64, embedding_dim=4)
    first, again = (Steps(case, WORLD, "megaclass", {}) for _ in range(2))
    drawn = []
    for steps, index in ((first, 0), (again, 0), (first, 1)):
        steps._draw(index)
        drawn.append(steps._whole)
    assert all(a.equal(b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not drawn[2][0].equal(drawn[0][0]) and drawn[2][1].max() > 500


@pytest.mark.process
def test_a_sweep_appends_a_row_for_each_case_and_goes_on_without_memory(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    before = Row(implementation="x", benchmark="head", case={}, status="skipped", reason="of an earlier day")
    write_rows(path, [before])
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
def test_two_processes_beside_two_of_a_peer(tmp_path):
    root = fake_peer.write(tmp_path / "peer")
    path = tmp_path / "rows.jsonl"
    assert bench("--num-classes", 50, "--world-size", 2, "--peer", "arcface_torch", "--peer-path", root,
                 "--output", path) == 0  # fmt: skip
    ours, peer = read_rows(path)
    assert (ours.status, peer.status) == ("ok", "ok"), (ours.reason, peer.reason)
    assert (ours.implementation, peer.implementation) == ("megaclass", "arcface_torch")
    assert ours.group == peer.group and ours.case["world_size"] == peer.case["world_size"] == 2
    assert peer.case["malloc"] == "tuned" and peer.environment["variables"]["MALLOC_MMAP_MAX_"] == "0"
    assert "MALLOC_MMAP_MAX_" not in ours.environment["variables"]


@pytest.mark.skipif("MEGACLASS_ARCFACE_TORCH" not in os.environ, reason="needs a copy of arcface_torch")
@pytest.mark.parametrize("words", [("--sample-rate", 0.5), ("--simulate-ranks", 4, "--margin", "cosface")])
def test_the_real_peer(tmp_path, words):
    path, folder = tmp_path / "rows.jsonl", os.environ["MEGACLASS_ARCFACE_TORCH"]
    asked = ["--num-classes", 100, "--peer", "arcface_torch", "--peer-path", folder, *words, "--output", path]
    assert bench(*asked) == 0
    assert [(row.status, row.case.get("malloc")) for row in read_rows(path)] == [
        ("ok", None),
        ("ok", "tuned"),
    ]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--num-classes", "many"], "--num-classes: 'many'"),
        (["--num-classes", "0"], "--num-classes"),
        (["--sample-rate", "nan"], "--sample-rate"),
        (["--precision", "fp8"], "fp8"),
        (["--margin", "adafase"], "adaface"),
        (["--steps", "1,2"], "--steps: '1,2'"),
        (["-n", "2", "--simulate-ranks", "2"], "--simulate-ranks"),
        (["--device", "tpu"], "--device: 'tpu'"),
        (["--device", "cuda:1"], "CUDA_VISIBLE_DEVICES"),
        (["--timeout", "0"], "--timeout"),
        (["--peer", "arcface_torch"], "--peer-path"),
        (["--peer", "arcface", "--peer-path", "."], "arcface_torch"),
        (["--peer", "arcface_torch", "--peer-path", "nowhere"], "partial_fc_v2.py"),
        (["--peer-path", "."], "--peer"),
        (["--output", "nowhere/rows.jsonl"], "nowhere/rows.jsonl"),
        (["--output", "notes.txt"], "notes.txt"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_touched(refused, words, part):
    Path("notes.txt").write_text("not rows\n")
    assert not refused(["bench", "head", *SMALL, *words], part)


def test_an_unknown_benchmark_has_a_near_one(capfd):
    assert main(["bench"]) == main(["bench", "hed"]) == 2
    assert "did you mean 'head'" in capfd.readouterr().err
