"""What a measurement needs of the machine: peak memory, and whether it had the processors to itself."""

import contextlib
import resource
import time
from pathlib import Path

import torch

from megaclass.results import machine

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
            "driver": round(_driver_mb(), 1) if self._cuda else None,
            "process": round(peak - self._start, 1) if known else None,  # type: ignore[operator]
        }


def limit_memory(device: str, processes: int) -> None:
    """Let this process have no more than its share of the memory that is free now: PyTorch then says that there is
    none left, where the kernel would look for somebody to kill. On a GPU host memory is not what runs out."""
    if device == "cpu":
        data = int((_status_mb("VmData") or 0) * MIB)
        most = data + machine.available_memory() // processes
        with contextlib.suppress(OSError, ValueError):  # a lower limit is there already
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            lower = most if soft == resource.RLIM_INFINITY else min(soft, most)
            resource.setrlimit(resource.RLIMIT_DATA, (lower, hard))


def _driver_mb() -> float:
    """In use on this process's GPU, as nvidia-smi and gpustat show it: by whomever, contexts included."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) / MIB


def _status_mb(name: str) -> float | None:
    """An entry of /proc/self/status; None where there is none (macOS)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) / 1024
    return None


class CpuWait:
    """For which part of the time since this was made some task of the machine waited for a processor.

    Linux counts it (Documentation/accounting/psi.rst); elsewhere the answer is None. A measurement that is alone
    has as many threads as there are cores, and hardly ever waits.
    """

    def __init__(self) -> None:
        self._begin, self._waited_s = time.monotonic(), _waited_s()

    def percent(self) -> float | None:
        waited_s, seconds = _waited_s(), time.monotonic() - self._begin
        if waited_s is None or self._waited_s is None or seconds <= 0:
            return None
        return round(min(100.0, 100 * (waited_s - self._waited_s) / seconds), 1)


def _waited_s() -> float | None:
    """The counter of the line ``some avg10=0.00 avg60=0.00 avg300=0.00 total=MICROSECONDS``."""
    with contextlib.suppress(OSError, ValueError):
        line = Path("/proc/pressure/cpu").read_text().splitlines()[0]
        return int(line.rpartition("total=")[2]) / 1e6
    return None
