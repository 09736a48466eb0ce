"""Two hosts with a network between them, one of which vanishes in the middle of a run.

Both are network namespaces of this machine, joined by a wire that can be cut: this takes Linux, iproute2 and root. At
the end the processes in the namespaces are killed, and the namespaces removed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny
from megaclass import checkpoint
from megaclass.results.events import EndEvent, StartEvent, StepEvent

pytestmark = [pytest.mark.dist, pytest.mark.slow]

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
STEPS, EVERY = 200, 20


@dataclass(frozen=True)
class Host:
    """One end of the wire."""

    name: str  # of the host and its namespace
    address: str

    def start(self, command: list[str], **options: Any) -> subprocess.Popen:
        """A process that knows the host by its name and sees no other network."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name, *command]
        environment = options.pop("env", dict(os.environ)) | {"GLOO_SOCKET_IFNAME": "wire"}
        return subprocess.Popen(["ip", "netns", "exec", self.name, *named], env=environment, **options)

    def cut(self) -> None:
        """Vanish: what is sent is lost, and nobody is told."""
        _ip("-n", self.name, "link", "set", "wire", "down")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, ...]]:
    """OSError, with the reason, where this machine does not permit it."""
    hosts = tuple(Host(f"mc{os.getpid()}-{name}", f"10.203.77.{i}") for i, name in ((1, "a"), (2, "b")))
    with contextlib.ExitStack() as undo:
        for host in hosts:
            _ip("netns", "add", host.name)
            undo.callback(_remove, host)
        _ip("link", "add", "wire", "netns", hosts[0].name, "type", "veth",
            "peer", "name", "wire", "netns", hosts[1].name)  # fmt: skip
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "wire")
            _ip("-n", host.name, "link", "set", "wire", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        for host in hosts:
            probe = host.start(["true"], stderr=subprocess.PIPE, text=True)
            if probe.wait():
                raise OSError(f"no process can be started in a namespace: {probe.stderr.read().strip()}")
        yield hosts


def _remove(host: Host) -> None:
    for pid in _ip("netns", "pids", host.name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "del", host.name)


def _ip(*words: str) -> str:
    """OSError, in one line, where ip fails or is not there."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


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
        options = (
            f"--nnodes {nodes} --nproc-per-node 2 --max-restarts 3 --rdzv-backend c10d --rdzv-id test "
            f"--rdzv-endpoint {hosts[0].address}:29400 --rdzv-conf {meeting} --local-addr {host.address}"
        )
        command = [sys.executable, "-m", "torch.distributed.run", *options.split(), *words]
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
    assert [event.step for event in tiny.events(run, StepEvent)] == list(range(1, STEPS + 1))
    starts = tiny.events(run, StartEvent)
    assert [event.world_size for event in starts] == world_sizes
    assert starts[1].resumed_from_step >= EVERY and starts[1].resumed_from_step % EVERY == 0
    assert [event.reason for event in tiny.events(run, EndEvent)] == ["finished"]


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
    assert f"2 ranks instead of 4: {hosts[1].name} has left with 2" in logs[0].read_text()
    # Its ranks have ended as well; PyTorch's agent there waits for its store.
    assert "has not answered for 3 s" in logs[1].read_text()


def test_a_killed_rank_is_restarted_on_both_hosts(hosts, tmp_path):
    logs = [tmp_path / f"{name}.log" for name in "ab"]
    faulty = str(Path(__file__).with_name("faulty.py"))
    both = torchrun(hosts, logs, "2", faulty, str(tmp_path), f"kill:3:{2 * EVERY + 5}", *settings(tmp_path))
    for process, log in zip(both, logs, strict=True):
        assert process.wait(timeout=200) == 0, log.read_text()[-4000:]
    check_events(tmp_path / "run", [4, 4])
