"""benchmarks/gpu.sh without a GPU: what it would run is what the command line takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fake_peer
from megaclass.bench import BENCHMARKS, sweep
from megaclass.cli.bench import options_of, options_of_suite
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


@pytest.mark.process
def test_every_part_says_what_the_command_line_understands(run, monkeypatch):
    result, calls = run()
    assert result.returncode == 0, result.stderr
    monkeypatch.setattr(groups, "pick_device", lambda name: torch.device("cuda"))
    assert calls[0] == ["-m", "pytest", "-m", "gpu"]
    names = [told[3] for told in calls if told[:3] == ["-m", "megaclass", "bench"]]
    assert names == ["suite"] * 6 + ["train"] * 12 + ["infer", "loader", "loader"] + ["head"] * 8
    assert {told[4] for told in calls if told[3] == "suite"} == {*published.names()}
    measured = 0
    for told in calls[1:]:
        if told[:4] == ["-m", "megaclass", "bench", "suite"]:
            assert options_of_suite(told[4:]).fit
        else:
            plan = sweep.plan(BENCHMARKS[told[3]], options_of(BENCHMARKS[told[3]], told[4:]))
            assert plan and all(one.case.device == "cuda" for one in plan)
            measured += sum(len(one.implementations) for one in plan)
    assert measured > 80


def test_a_gpu_gives_its_rows_a_name_and_an_unknown_part_runs_nothing(run, monkeypatch, tmp_path):
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho NVIDIA H200\necho NVIDIA H200\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    result, calls = run("larger")
    assert result.returncode == 2 and "larger" in result.stderr and not calls
    _, (words,) = run("infer")
    assert Path(words[words.index("--output") + 1]) == tmp_path / "results" / "infer-h200.jsonl"
