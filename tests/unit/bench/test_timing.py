"""Whether a time is what it is said to be: a made clock and a made device, which works on after a call returns; memory
and limits."""

import gc
import mmap

import pytest
import torch

from megaclass.bench import timing, turns
from megaclass.bench.head import HeadCase
from megaclass.bench.timing import epoch_measures, run_epoch, time_ms
from megaclass.bench.worker import PeakMemory
from megaclass.parallel.groups import World

CPU = torch.device("cpu")


class Device:
    """Host and device share one time line, in seconds: the host gives out work and goes on, the device does it later.

    It is a clock as :func:`run_epoch` wants one. ``waits`` notes when the host waited.
    """

    def __init__(self):
        self.host = self.free_at = 0.0
        self.waits = []

    def works(self, seconds, launch=0.001):
        """Hand over work that takes the device ``seconds``, and the host ``launch`` to hand over."""
        self.host += launch
        self.free_at = max(self.free_at, self.host) + seconds

    def loads(self, *seconds):
        """A loader that makes the host wait so long for each of its batches."""
        for one in seconds:
            self.host += one
            yield one

    def now(self):
        return self.host

    def wait(self):
        self.waits.append(self.host)
        self.host = max(self.host, self.free_at)

    def mark(self):
        return max(self.host, self.free_at)

    def between_ms(self, first, second):
        return (second - first) * 1000


def test_steps_are_timed_by_the_device_and_nobody_waits_between_them():
    device = Device()
    device.works(5.0)  # left over from whatever came before: a warm-up, an evaluation
    answer = run_epoch(device.loads(0, 0, 0), lambda batch: device.works(0.1), 3, device)
    assert answer["samples_ms"] == pytest.approx([101, 100, 100])  # the first one waits for its launch
    assert answer["whole_ms"] == pytest.approx(301) and device.host == device.free_at
    assert len(device.waits) == 2  # before the first step, and after the last


def test_data_time_is_what_the_loop_waited_and_total_time_has_both():
    device = Device()
    answer = run_epoch(device.loads(0.3, 0.02), lambda batch: device.works(0.1), 2, device)
    assert answer["data_ms"] == pytest.approx([300, 0])  # the device works through the second wait
    assert answer["samples_ms"] == pytest.approx([401, 100])  # which is hidden behind the first step
    assert sum(answer["samples_ms"]) == pytest.approx(answer["whole_ms"])


def test_a_latency_is_waited_for_one_by_one():
    device = Device()
    answer = run_epoch(device.loads(0.01, 0.01), lambda batch: device.works(0.1), 2, device, one_by_one=True)
    assert answer["samples_ms"] == pytest.approx([111, 111])  # batch, launch, work: nothing overlaps
    assert answer["data_ms"] == pytest.approx([10, 10])
    assert len(device.waits) == 4


def test_a_step_alone_is_timed_from_idle_to_idle(monkeypatch):
    device = Device()
    monkeypatch.setattr(timing, "device_clock", lambda where: device)
    device.works(7.0)
    ms, result = time_ms(CPU, lambda: device.works(0.25) or "done")
    assert ms == pytest.approx(251) and result == "done"


def test_speeds_of_an_epoch_and_their_harmonic_mean():
    """As NVIDIA's script: the speeds of epochs of one length, by the slowest rank."""
    fast = {"whole_ms": 1000, "samples_ms": [500, 500], "data_ms": [0, 0]}
    slow = {"whole_ms": 3000, "samples_ms": [1000, 2000], "data_ms": [500, 1000]}
    fields = epoch_measures([[fast], [slow]], rows_of_step=10)
    assert [epoch["total"] for epoch in fields["epochs"]] == pytest.approx([20, 6.667], rel=1e-3)
    assert fields["rates"]["total"] == pytest.approx(10)  # 40 rows in 4 s
    assert fields["epochs"][1]["compute"] == pytest.approx(20 / 1.5, rel=1e-3)
    assert fields["epochs"][1]["data"] == pytest.approx(20 / 1.5, rel=1e-3)
    assert fields["epochs"][0]["data"] is None and fields["rates"]["data"] is None  # nothing was waited for
    assert fields["samples_ms"] == [500, 500, 1000, 2000] and fields["data_ms"] == [0, 0, 500, 1000]
    assert fields["samples_per_second"] == pytest.approx(10 / 0.75, rel=1e-3)  # by the median step

    first = {"whole_ms": 200, "samples_ms": [100, 100], "data_ms": [10, 0]}
    second = {"whole_ms": 210, "samples_ms": [120, 90], "data_ms": [0, 30]}
    fields = epoch_measures([[first, second]], rows_of_step=21)
    assert fields["samples_ms"] == [120, 100] and fields["data_ms"] == [10, 30]
    assert fields["rates"]["total"] == pytest.approx(200)


def test_the_peak_counts_what_was_given_back():
    peaks = []
    # A busy system takes pages away meanwhile.
    while len(peaks) < 5 and not any(62 < peak < 96 for peak in peaks):
        gc.collect()
        found = PeakMemory(CPU)
        with mmap.mmap(-1, 64 * 2**20) as pages:  # not by malloc, which may have kept as much from another test
            pages[::4096] = bytes([1]) * (len(pages) // 4096)
        read = found.read()
        assert read["allocated"] is None and read["reserved"] is None
        if read["process"] is None:
            pytest.skip("the kernel does not tell")
        peaks.append(read["process"])
    assert 62 < peaks[-1] < 96, peaks


def test_how_long_processors_were_waited_for(monkeypatch):
    waited, now = iter([3.0, None]), iter([14.0, 15.0])
    monkeypatch.setattr(turns, "_cpu_wait_s", lambda: next(waited))
    monkeypatch.setattr(turns.time, "monotonic", lambda: next(now))
    assert turns._share_waited(10.0, 2.0) == 25 and turns._share_waited(10.0, 2.0) is None


def test_limits_are_those_of_a_large_product_and_a_large_copy(monkeypatch):
    monkeypatch.setattr(timing, "_best_ms", lambda work, device: work() is None or 2.0)
    monkeypatch.setattr(timing, "_product_ms", lambda dtype, precision, side, device: side / 32)
    found = timing.measure(HeadCase(precision="bf16"), World(0, 1, CPU))
    flops = 2048**3 * 1000 / 32  # in 64 ms, which is a while
    assert found == {"limit_flops_per_second": flops, "limit_bytes_per_second": 2**28 * 1000}
    beside = timing.beside_limits({"flops": 10.0}, 2.0, [found, {"limit_flops_per_second": 1.0}])
    assert beside == {"flops": 10.0, "flops_per_second": 5000, "limit_flops_per_second": flops + 1}
