"""The command line under torchrun, as people start it."""

import json
import os
import socket
import subprocess
import sys

import pytest

import tiny
from megaclass.errors import LOST_RANK_STATUS
from megaclass.results.events import StepEvent, read_events

pytestmark = pytest.mark.dist

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def torchrun(*words):
    """``megaclass train`` on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "megaclass", "train", *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def by_hand(folders, *words):
    """megaclass on a rank in each folder, started without torchrun, which ends the other ranks before they can say
    anything. (processes, what each said as an error)"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "megaclass", *words],
            cwd=folder,
            env=ENVIRONMENT | meeting | {"RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    return processes, [process.communicate(timeout=60)[1].splitlines() for process in processes]


def test_two_ranks_make_one_run(tmp_path):
    done = torchrun(tiny.recipe(tmp_path, schedule={"steps": 4}))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["world_size"], result["steps"], result["samples"]) == (2, 4, 48)
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert [event.step for event in events if isinstance(event, StepEvent)] == [1, 2, 3, 4]
    assert done.stdout.count("Global Step: 4 ") == 1  # the main rank speaks, the other is silent
    assert "Warning" not in done.stderr


def test_a_bad_setting_is_told_once(tmp_path):
    done = torchrun(tiny.recipe(tmp_path), "--data.num_classes", "7")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("megaclass:")]
    assert len(lines) == 1 and "data.num_classes: 7" in lines[0]
    assert "megaclass/" not in done.stderr  # no traceback through our files
    assert not (tmp_path / "run").exists()


def test_what_one_rank_alone_meets_ends_the_others_without_a_traceback(tmp_path):
    recipe, path = tiny.recipe(tmp_path), tmp_path / "records" / "train.rec"
    content = bytearray(path.read_bytes())
    last_image = content.rindex(b"\xff\xd8\xff")
    content[last_image + 4 : last_image + 60] = bytes(56)
    path.write_bytes(content)
    processes, told = by_hand([tmp_path, tmp_path], "train", recipe)
    assert [len(lines) for lines in told] == [1, 1], told
    (met,) = (rank for rank in (0, 1) if "damaged image" in told[rank][0])
    assert told[1 - met] == [f"megaclass: rank {1 - met} stops, since another rank has left or hangs"]
    assert (processes[met].returncode, processes[1 - met].returncode) == (2, LOST_RANK_STATUS)


@pytest.mark.parametrize("lacks", [0, 1])
def test_data_missing_on_one_rank_is_told_by_all(tmp_path, lacks):
    """The linear head's parameters are broadcast as soon as the others have built it: nobody may wait there."""
    recipe = tiny.recipe(tmp_path, head={"kind": "linear"}, data={"path": "here"}, run={"output": "run"})
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    (folders[1 - lacks] / "here").symlink_to(tmp_path / "records")
    processes, told = by_hand(folders, "train", recipe)
    assert [process.returncode for process in processes] == [2, 2], told
    assert len(told[0]) == 1 and "data.path: here: no such file or directory" in told[0][0] and not told[1]
