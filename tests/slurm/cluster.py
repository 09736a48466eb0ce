"""A SLURM cluster on this machine: munged, slurmctld, and a slurmd for each of two nodes, in a directory of its own.

Root and the programs of Debian's slurm-wlm and munge are needed; no file of the system is read or changed.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ranks import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NODES = ("n1", "n2")
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={folder}/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=sched_interval=1
SelectType=select/cons_tres
KillWait=5
PropagateResourceLimits=NONE
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""


def lacking() -> str:
    """Why there can be no cluster here, or an empty string."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    return f"no {missing[0]}: make slurm-test installs it" if missing else ""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and its like reach the cluster. It ends with the block, and so do its jobs."""
    (folder / "state").mkdir()
    (folder / "key-file").write_bytes(os.urandom(1024))
    (folder / "key-file").chmod(0o400)
    ports = [free_port() for _ in range(1 + len(NODES))]
    host = socket.gethostname().partition(".")[0]
    nodes = zip(NODES, ports[1:], strict=True)
    listed = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2" for name, port in nodes
    ]
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(host=host, folder=folder, port=ports[0], nodes="\n".join(listed)))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    munge = [
        f"--{kind}={folder}/{kind}" for kind in ("key-file", "socket", "pid-file", "log-file", "seed-file")
    ]
    daemons = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"]]
    daemons += [["slurmd", "-D", "-N", name] for name in NODES]

    def says(*words: str) -> str:
        return subprocess.run(
            words, env=environment, capture_output=True, text=True, check=False
        ).stdout.strip()

    with contextlib.ExitStack() as undo:
        log = undo.enter_context((folder / "daemons.log").open("w"))
        for words in daemons:
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
            undo.callback(process.wait, 60)
            undo.callback(process.terminate)
            if words[0] == "munged":
                wait_until((folder / "socket").exists, 10)
        wait_until(lambda: says("sinfo", "-h", "-o", "%D %t") == f"{len(NODES)} idle", 60)
        undo.callback(wait_until, lambda: not says("squeue", "-h"), 60)
        undo.callback(says, "scancel", "--user=root")
        yield environment


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
