"""benchmarks/gpu.sh without a GPU: what it would run is what the command line takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megaclass.bench.old_head import plan as head
from megaclass.bench.old_loader import plan
from megaclass.bench.old_train import plan as train
from megaclass.cli.bench.head import options_of_head
from megaclass.cli.bench.loader import options_of_loader

import fake_peer
from megaclass.bench import arguments as words
from megaclass.cli import parsing
from megaclass.cli.bench import collectives, infer, roofline, suite
from megaclass.cli.bench import train as train_words
from megaclass.results import published

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.sh"
RECORDER = f"""#!{sys.executable} -S
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "--output" in sys.argv:
    status = "ok" if "30M" in sys.argv else "oom"
    with open(sys.argv[sys.argv.index("--output") + 1], "a") as file:
        file.write('{{"status": "' + status + '"}}\\n')
"""


@pytest.fixture
def run(tmp_path):
    python = tmp_path / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    record, peer = tmp_path / "record", fake_peer.write(tmp_path / "peer")

    def call(*parts):
        variables = {"PYTHON": python, "RESULTS": tmp_path / "results", "PEER_PATH": peer, "RECORD": record}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        result = subprocess.run(
            [SCRIPT, *parts], env=environment, capture_output=True, text=True, check=False
        )
        calls = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
        return result, calls

    return call


def test_every_part_says_what_the_command_line_understands(run, monkeypatch):
    result, calls = run()
    assert result.returncode == 0, result.stderr
    assert calls[0] == ["-m", "pytest", "-m", "gpu"]
    monkeypatch.setattr(words.distributed, "pick_device", lambda name: torch.device("cuda"))
    names = [told[3] for told in calls[1:] if told[:3] == ["-m", "megaclass", "bench"]]
    training = ["roofline", *["train"] * 3, "infer", *["train"] * 9]
    assert names == ["suite"] * 6 + training + ["infer", "collectives", "loader", "loader"] + ["head"] * 8
    assert {told[4] for told in calls[1:7]} == {*published.names()}
    suites = [understood(suite.options_of_suite, told[4:]) for told in calls[1:7]]
    assert all(options.fit and options.device == "cuda" for options in suites)
    assert [options.whole_job for options in suites] == [False] * 5 + [True]
    last = calls[calls.index(["benchmarks/stall.py", *of_stall(calls)]) - 4 :]
    assert understood(infer.options_of_infer, last[0][4:]).engine == "eager,compiled,cudagraph"
    assert understood(collectives.options_of_collectives, last[1][4:]).device == "cuda"
    plans = []
    for told in last[5:]:
        assert told[:4] == ["-m", "megaclass", "bench", "head"]
        parser = parsing.make_parser("megaclass bench head", "")
        options_of_head(parser)
        plans.append(head.planned(parsing.parse(parser, told[4:])))
    assert [len(plan) for plan in plans] == [6, 8, 8] + [2] * 5  # the largest: 100 M to 30 M, which fits
    shares = {(one.case.storage, one.case.sample_rate) for one in plans[1]}
    assert len(shares) == 8 and {one.case.num_classes // one.case.ranks for one in plans[1]} == {10**7}
    assert all(len(one.entries) == 2 for one in plans[2])


def of_stall(calls):
    (told,) = (told[1:] for told in calls if told[0] == "benchmarks/stall.py")
    assert told[:2] == ["--device", "cuda"]
    return told


def trained(told):
    """The plan of a call of `bench train`, and its options."""
    parser = parsing.make_parser("megaclass bench train", "")
    train_words.options_of_train(parser)
    options, given = parsing.parse_with_settings(parser, told)
    options.settings = train_words.settings_of(given)
    return train.planned(options), options


def test_whole_steps_beside_others(run, monkeypatch, tmp_path):
    result, calls = run("train")
    assert result.returncode == 0, result.stderr
    monkeypatch.setattr(words.distributed, "pick_device", lambda name: torch.device("cuda"))
    bounds, faces, photographs, ranks, inference = calls
    assert understood(roofline.options_of_roofline, bounds[4:]).device == "cuda"
    plan, options = trained(faces[4:])
    cases = [(one.case.backbone, one.case.num_classes, one.case.sample_rate) for one in plan]
    assert (
        len(cases) == 8 and ("iresnet50", 618_000, 1.0) in cases and ("iresnet100", 2_000_000, 0.1) in cases
    )
    for one in plan:
        assert (
            one.case.global_batch_size == 1024 and one.case.precision == "bf16" and one.case.device == "cuda"
        )
        assert [entry.implementation for entry in one.entries] == ["megaclass", "arcface_torch"]
        assert not any(entry.missing for entry in one.entries)
    assert Path(options.output) == tmp_path / "results" / "train-gpu.jsonl"
    (one,), _ = trained(photographs[4:])
    assert one.case.backbone == "resnet50" and one.case.image_size == 224
    assert [(entry.implementation, entry.missing) for entry in one.entries] == [
        ("megaclass", ""),
        ("pytorch", ""),
    ]
    plan, _ = trained(ranks[4:])
    assert [one.case.simulate_ranks for one in plan] == [1, 2, 8, 64]
    assert {one.case.global_batch_size // one.case.ranks for one in plan} == {128}
    assert understood(infer.options_of_infer, inference[4:]).batch_size == "1,256"


def test_one_setting_at_a_time(run, monkeypatch):
    result, calls = run("ablation")
    assert result.returncode == 0, result.stderr
    monkeypatch.setattr(words.distributed, "pick_device", lambda name: torch.device("cuda"))
    for told in calls:
        (one,), options = trained(told[4:])
        assert options.one_at_a_time and 2 <= len(one.entries) <= 4, told
        settings = [entry.changes.get("settings", {}) for entry in one.entries]
        assert len({str(setting) for setting in settings}) == len(settings)


def test_a_profile_is_of_one_case(run, monkeypatch, tmp_path):
    result, calls = run("profile")
    assert result.returncode == 0, result.stderr
    monkeypatch.setattr(words.distributed, "pick_device", lambda name: torch.device("cuda"))
    names = []
    for told in calls:
        assert told[0] == "benchmarks/profile_step.py"
        (one,), options = trained(told[1:])
        assert one.case.iterations == 10 and one.case.warmup == 2
        names.append(Path(options.output).name)
    assert names == [
        "profile-iresnet50-gpu.txt",
        "profile-iresnet50-sampled-gpu.txt",
        "profile-resnet50-gpu.txt",
    ]


def understood(options_of, words):
    parser = parsing.make_parser("megaclass bench", "")
    options_of(parser)
    return parsing.parse(parser, words)


def test_loaders_deliver_to_the_gpu(run, monkeypatch, tmp_path):
    result, calls = run("loader")
    assert result.returncode == 0, result.stderr
    monkeypatch.setattr(words.distributed, "pick_device", lambda name: torch.device("cuda"))
    cases = []
    for told in calls:
        parser = parsing.make_parser("megaclass bench loader", "")
        options_of_loader(parser)
        options = parsing.parse(parser, told[4:])
        assert Path(options.output) == tmp_path / "results" / "loader-gpu.jsonl"  # there is no GPU to name
        (one,) = plan.planned(options)
        case = one.case
        cases.append(case)
        assert case.device == "cuda" and options.loader == "threads,dali" and "nvjpeg" in options.peer
    assert [case.workload for case in cases] == ["faces", "imagenet"]


def test_a_gpu_gives_its_rows_a_name(run, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H200\necho NVIDIA H200\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    _, (words,) = run("stall")
    assert Path(words[words.index("--output") + 1]) == tmp_path / "results" / "stall-h200.jsonl"


def test_an_unknown_part(run):
    result, calls = run("larger")
    assert result.returncode == 2 and "larger" in result.stderr and not calls
