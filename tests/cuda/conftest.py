"""The CUDA half of the program, on a real device, or on the emulated one that `PYTHONPATH=tests/cuda/emulated` brings
where PyTorch is built without CUDA. What that one cannot do (compile, capture graphs, take its time) is marked gpu."""

import contextlib
from pathlib import Path

import pytest
import torch

EMULATED = torch.version.cuda is None
NO_DEVICE = "needs a CUDA GPU; the emulated one needs "
NO_DEVICE += (
    "PYTHONPATH=tests/cuda/emulated and a C++ compiler" if EMULATED else "a CPU build of PyTorch, not a CUDA build"
)
SKIPPED, WHY = ("gpu", "needs graphs or time") if EMULATED else ("emulated", "counted on the emulated device")


def pytest_collection_modifyitems(items):
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent) or item.path.name == "test_compiled.py":
            continue
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=NO_DEVICE))
        elif SKIPPED in item.keywords:
            item.add_marker(pytest.mark.skip(reason=WHY))


def pytest_terminal_summary(terminalreporter):
    if not torch.cuda.is_available():
        terminalreporter.write_line(f"tests/cuda was skipped: it {NO_DEVICE}")


@pytest.fixture
def recorded():
    """A context in which the emulated device tells what it is asked; on a real one nothing is told."""
    if not EMULATED:
        return contextlib.nullcontext
    import device

    return device.recorded
