"""Two machines in one: network namespaces joined by a wire that can be cut. Needs Linux, iproute2 and root.

    with two_hosts() as hosts:
        process = hosts[0].start(["torchrun", ...])
        hosts[1].cut()

Everything is gone at the end: the processes in the namespaces are killed, and the namespaces removed.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


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
def two_hosts() -> Iterator[tuple[Host, Host]]:
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
