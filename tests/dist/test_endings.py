"""The end of a rank. Of its groups' threads none may be left when Python ends: one that lets go of a tensor just then,
and waits for Python to free its own part of it, is ended in the middle of C++, and the process aborts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ranks import free_port, meeting

pytestmark = pytest.mark.dist

# In the processes of ranks.py PyTorch's modules are there before the group is: these are fresh.
COMMAND = [sys.executable, str(Path(__file__).with_name("endings.py"))]
VARIABLES = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
TOLD = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.mark.parametrize(
    ("way", "statuses", "errors"),
    [
        ("well", [0, 0], [[], []]),
        ("error", [0, 0], [["UserError"], ["LostRankError"]]),
        ("killed", [-9, 0], [None, ["LostRankError"]]),
    ],
)
def test_no_thread_of_a_group_is_left(way, statuses, errors):
    port = free_port()
    environments = [VARIABLES | meeting(rank, 2, port) for rank in (0, 1)]
    ranks = [subprocess.Popen([*COMMAND, way], env=variables, **TOLD) for variables in environments]
    told = [process.communicate(timeout=100) for process in ranks]
    assert [process.returncode for process in ranks] == statuses, told
    for (output, _), error in zip(told, errors, strict=True):
        if error is not None:
            *lines, threads = output.splitlines()
            assert lines == error and "gloo" not in threads, told
