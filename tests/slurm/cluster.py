"""A SLURM cluster on this machine: munged, slurmctld and two slurmd, in a directory of their own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ranks import free_port

HERE = os.geteuid() == 0 and all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch")))
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
SchedulerParameters=sched_interval=1
SelectType=select/cons_tres
"""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and its like reach the cluster. It ends with the block, and so do its jobs."""
    (folder / "state").mkdir()
    (folder / "key-file").write_bytes(os.urandom(1024))
    (folder / "key-file").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    conf = _CONF.format(host=host, folder=folder, port=free_port())
    for name in NODES:
        conf += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2\n"
    (folder / "slurm.conf").write_text(conf + "PartitionName=all Nodes=ALL Default=YES\n")
    environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"}
    files = ("key-file", "socket", "pid-file", "log-file", "seed-file")
    munge = [f"--{kind}={folder}/{kind}" for kind in files]
    daemons = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"]]
    daemons += [["slurmd", "-D", "-N", name] for name in NODES]

    def says(*words: str) -> str:
        return subprocess.run(words, env=environment, stdout=-1, text=True, check=False).stdout.strip()

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
