"""The command line under torchrun, as people start it."""

import json
import os
import subprocess
import sys

import pytest

import tiny
from megaclass.events import StepEvent, read_events

pytestmark = pytest.mark.dist


def torchrun(*words):
    """``megaclass train`` on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "megaclass", "train", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_ranks_make_one_run(tmp_path):
    done = torchrun(tiny.recipe(tmp_path, schedule={"steps": 4}))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["world_size"], result["steps"], result["samples"]) == (2, 4, 48)
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert [event.step for event in events if isinstance(event, StepEvent)] == [1, 2, 3, 4]
    assert done.stdout.count("Global Step: 4 ") == 1  # the main rank speaks, the other is silent
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("fault", ["every rank", "one rank"])
def test_bad_input_is_told_once(tmp_path, fault):
    recipe = tiny.recipe(tmp_path)
    if fault == "every rank":
        told, words = "data.num_classes: 7", ["--data.num_classes", "7"]
    else:  # an image that only the rank which meets it sees, in the middle of a step
        told, words = "damaged image", ["--schedule.steps", "2"]
        path = tmp_path / "records" / "train.rec"
        content = bytearray(path.read_bytes())
        last_image = content.rindex(b"\xff\xd8\xff")
        content[last_image + 4 : last_image + 60] = bytes(56)
        path.write_bytes(content)
    done = torchrun(recipe, *words)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "megaclass: error:" in line]
    assert len(lines) == 1 and told in lines[0]
    assert "megaclass/" not in done.stderr  # no traceback through our files
    assert not (tmp_path / "run" / "result.json").exists()
