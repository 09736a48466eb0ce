"""Two hosts with a network between them, one of which vanishes in the middle of a run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from megaclass import checkpoint
from megaclass.results.events import EndEvent, StartEvent, StepEvent, read_events
from two_hosts import two_hosts

pytestmark = [pytest.mark.dist, pytest.mark.slow]

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
STEPS, EVERY = 200, 20


@pytest.fixture
def hosts():
    try:
        with two_hosts() as hosts:
            yield hosts
    except OSError as error:
        pytest.skip(f"no hosts in network namespaces on this machine: {error}")


def torchrun(hosts, logs, nodes, *words):
    """Both hosts of a job, with two ranks each, that meet on the first one."""
    processes = []
    for host, log in zip(hosts, logs, strict=True):
        meeting = f"last_call_timeout=8,is_host={int(host is hosts[0])}"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", "2"),
            *(
                "--max-restarts",
                "3",
                "--rdzv-backend",
                "c10d",
                "--rdzv-endpoint",
                f"{hosts[0].address}:29400",
            ),
            *("--rdzv-id", "test", "--rdzv-conf", meeting, "--local-addr", host.address, *words),
        ]
        with log.open("w") as file:
            processes.append(host.start(command, env=ENVIRONMENT, stdout=file, stderr=file))
    return processes


def wait_for(condition, seconds, process, log):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.1)


def check_events(run, world_sizes):
    """Those of one run, in which each step was told once."""
    result = json.loads((run / "result.json").read_text())
    assert (result["world_size"], result["steps"]) == (world_sizes[-1], STEPS)
    events = read_events(run / "events.jsonl")
    assert [event.step for event in events if isinstance(event, StepEvent)] == list(range(1, STEPS + 1))
    starts = [event for event in events if isinstance(event, StartEvent)]
    assert [event.world_size for event in starts] == world_sizes
    assert starts[1].resumed_from_step >= EVERY and starts[1].resumed_from_step % EVERY == 0
    assert [event.reason for event in events if isinstance(event, EndEvent)] == ["finished"]


def settings(folder):
    head = {"sample_rate": 0.5, "shard_group": "node"}
    recipe = tiny.recipe(folder, run={"checkpoint_every": EVERY}, head=head, schedule={"steps": STEPS})
    return ["train", recipe, "--resume", "--run.output", str(folder / "run"), "--run.heartbeat_s", "3"]


def test_a_host_vanishes_and_the_run_goes_on_without_it(hosts, tmp_path):
    run, logs = tmp_path / "run", [tmp_path / f"{name}.log" for name in "ab"]
    here, _ = torchrun(hosts, logs, "1:2", "-m", "megaclass", *settings(tmp_path))
    wait_for(lambda: checkpoint.latest(run / "checkpoints"), 120, here, logs[0])
    hosts[1].cut()
    vanished = time.monotonic()
    wait_for(lambda: "was silent for 3 s" in logs[0].read_text(), 30, here, logs[0])
    print(f"noticed after {time.monotonic() - vanished:.1f} s")
    assert f"on {hosts[1].name} was silent" in logs[0].read_text()
    assert here.wait(timeout=200) == 0, logs[0].read_text()[-4000:]
    print(f"finished after {time.monotonic() - vanished:.1f} s")
    check_events(run, [4, 2])
    # Its ranks have ended as well; PyTorch's agent there waits for its store.
    assert "has not answered for 3 s" in logs[1].read_text()


def test_a_killed_rank_is_restarted_on_both_hosts(hosts, tmp_path):
    logs = [tmp_path / f"{name}.log" for name in "ab"]
    faulty = str(Path(__file__).with_name("faulty.py"))
    both = torchrun(hosts, logs, "2", faulty, str(tmp_path), f"kill:3:{2 * EVERY + 5}", *settings(tmp_path))
    for process, log in zip(both, logs, strict=True):
        assert process.wait(timeout=200) == 0, log.read_text()[-4000:]
    check_events(tmp_path / "run", [4, 4])


def test_nothing_of_the_hosts_is_left(hosts):
    sleeper = hosts[0].start(["sleep", "1000"])
    name = hosts[0].name
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert name in listed and sleeper.poll() is None
