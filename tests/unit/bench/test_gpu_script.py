"""benchmarks/gpu.sh without a GPU: what it would run is what the command line takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fake_peer
from megaclass.bench import BENCHMARKS, suite
from megaclass.bench.sweep import plan
from megaclass.cli import bench
from megaclass.cli.parsing import make_parser, parse
from megaclass.parallel import groups
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
def run(tmp_path, monkeypatch):
    """Runs parts of the script on a GPU by the name of H200, and returns the result and what it would have called."""
    monkeypatch.setattr(groups, "pick_device", lambda name: torch.device("cuda"))
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho NVIDIA H200\necho NVIDIA H200\n")
    tool.chmod(0o755)
    python = tmp_path / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    record, peer = tmp_path / "record", fake_peer.write(tmp_path / "peer")
    record.write_text("")

    def call(*parts):
        variables = {"PYTHON": python, "RESULTS": tmp_path / "results", "PEER_PATH": peer, "RECORD": record}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        environment["PATH"] = f"{tool.parent}{os.pathsep}{environment['PATH']}"
        result = subprocess.run(
            [SCRIPT, *parts], env=environment, capture_output=True, text=True, check=False
        )
        return result, [json.loads(line) for line in record.read_text().splitlines()]

    return call


def planned(name, words):
    """What `megaclass bench NAME` would measure, and the name of its file."""
    options = bench._options(BENCHMARKS[name], words)
    return plan(BENCHMARKS[name], options), Path(options.output).name


@pytest.mark.process
def test_every_part_says_what_the_command_line_understands(run):
    result, calls = run()
    assert result.returncode == 0, result.stderr
    assert calls[0] == ["-m", "pytest", "-m", "gpu"]
    found = {}
    for told in calls[1:]:
        if told[0].endswith("profile_step.py"):
            name, told = "train", [*told[:1], *told]  # it takes the options of `bench train`
        else:
            assert told[:3] == ["-m", "megaclass", "bench"], told
            name = told[3]
        if name != "suite":
            found.setdefault(name, []).append(planned(name, told[2 if "profile" in told[0] else 4 :]))
    suites = [told for told in calls if told[3:4] == ["suite"]]
    assert {told[4] for told in suites} == {*published.names()}
    for told in suites:
        parser = make_parser("megaclass bench suite", "")
        bench._add(parser, suite.FLAGS)
        bench._add_sweep(parser, "")
        options = parse(parser, told[4:])
        assert options.fit and options.device == "cuda"
    assert {name: {file for _, file in plans} for name, plans in found.items()} == {
        "train": {"train-h200.jsonl", "profile-iresnet50-h200.txt", "profile-iresnet50-sampled-h200.txt",
                  "profile-resnet50-h200.txt"},
        "infer": {"infer-h200.jsonl"},
        "loader": {"loader-h200.jsonl"},
        "head": {"head-gpu.jsonl"},
    }  # fmt: skip
    assert {one.case.device for plans in found.values() for every, _ in plans for one in every} == {"cuda"}
    faces = found["train"][0][0]  # beside the peer, whose code is there
    assert {one.case.num_classes for one in faces} == {618_000, 2_000_000}
    assert all([who.name for who in one.implementations] == ["megaclass", "arcface_torch"] for one in faces)
    sizes, share, peer, *largest = (every for every, _ in found["head"])
    assert {one.case.num_classes // one.case.ranks for one in share} == {10**7}
    assert all(len(one.implementations) == 2 for one in peer)
    assert len(sizes) == 6 and len(largest) == 5  # 100 M to 30 M, which fits


@pytest.mark.process
def test_an_unknown_part(run):
    result, calls = run("larger")
    assert result.returncode == 2 and "larger" in result.stderr and not calls
