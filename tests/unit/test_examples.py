"""The example runs as its first lines say, and learns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_loop.py"


@pytest.mark.long
def test_the_example_learns() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss +([\d.]+)", done.stdout)]
    assert len(losses) == 4 and losses[-1] < 3
    one, two = map(float, re.findall(r"(-?[\d.]+) of (?:one|two)", done.stdout))
    assert one > 0.4 and abs(two) < 0.1
