"""The clock, the memory mark and the measured limits."""

import pytest
import torch

from megaclass.bench import cpu_wait as pressure
from megaclass.bench import limits
from megaclass.bench.memory import PeakMemory
from megaclass.bench.timing import Stopwatch

CPU = torch.device("cpu")


def test_the_clock_is_read_when_the_device_is_idle():
    now, queued = [0.0], []

    def launch():
        now[0] += 1  # the host's share
        queued.append(5)

    def wait():
        now[0] += sum(queued)
        queued.clear()

    watch = Stopwatch(CPU, wait, lambda: now[0])
    queued.append(100)  # of what was before: none of ours
    assert watch.time_ms(launch) == (6000.0, None)


def test_a_step_that_fails_is_no_sample():
    def fail():
        raise MemoryError

    with pytest.raises(MemoryError):
        Stopwatch(CPU).time_ms(fail)


def test_the_peak_counts_what_was_given_back():
    memory = PeakMemory(CPU)
    torch.ones(64 * 2**20 // 4)  # more than glibc ever takes from memory that it has kept
    peak = memory.read()
    assert peak["allocated"] is None and peak["reserved"] is None
    if peak["process"] is None:
        pytest.skip("the kernel does not tell")
    assert 62 < peak["process"] < 96


def test_pressure(tmp_path, monkeypatch):
    file, now = tmp_path / "cpu", iter([10.0, 14.0, 15.0])
    monkeypatch.setattr(pressure, "_FILE", file)
    monkeypatch.setattr(pressure.time, "monotonic", lambda: next(now))
    file.write_text("some avg10=1.00 avg60=0.00 avg300=0.00 total=2000000\nfull avg10=0.00 total=0\n")
    found = pressure.Pressure()
    file.write_text("some avg10=1.00 avg60=0.00 avg300=0.00 total=3000000\n")
    assert found.percent() == 25
    file.unlink()
    assert found.percent() is None


def test_limits(monkeypatch):
    monkeypatch.setattr(limits, "REPEATS", 1)
    monkeypatch.setattr(limits, "_best_ms", lambda work, device: work() is None or 2.0)
    found = limits.measure("bf16", CPU)
    assert found == {"limit_flops_per_second": 2048**3 * 1000, "limit_bytes_per_second": 2**28 * 1000}
