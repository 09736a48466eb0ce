"""The command line under torchrun, as people start it."""

import json
import os
import subprocess
import sys

import pytest

import tiny
from megaclass.results.events import StepEvent, read_events

pytestmark = pytest.mark.dist

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def test_two_ranks_make_one_run(tmp_path):
    recipe = tiny.recipe(tmp_path, schedule={"steps": 4})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "megaclass", "train", recipe]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["world_size"], result["steps"], result["samples"]) == (2, 4, 48)
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert [event.step for event in events if isinstance(event, StepEvent)] == [1, 2, 3, 4]
    assert done.stdout.count("Global Step: 4 ") == 1  # the main rank speaks, the other is silent
    assert "Warning" not in done.stderr
