"""Peak memory since a moment: of the process as the kernel counts it, and of PyTorch's GPU allocator."""

import contextlib
from pathlib import Path

import torch

MIB = 2**20


class PeakMemory:
    """Peaks above the resident memory at the moment when this was made, in MiB.

    Linux keeps a high-water mark of resident memory that a process may reset. Where it may not, the mark is
    used as it is: if the libraries needed more while they were loaded than they keep, the peak reads too high.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _status_mb("VmRSS")

    def read(self) -> dict[str, float | None]:
        peak = _status_mb("VmHWM")
        known = peak is not None and self._start is not None
        return {
            "allocated": round(torch.cuda.max_memory_allocated() / MIB, 1) if self._cuda else None,
            "reserved": round(torch.cuda.max_memory_reserved() / MIB, 1) if self._cuda else None,
            "process": round(peak - self._start, 1) if known else None,  # type: ignore[operator]
        }


def _status_mb(name: str) -> float | None:
    """An entry of /proc/self/status; None where there is none (macOS)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) / 1024
    return None
