"""Whether a time is what it is said to be: a made clock and a made device, which works on after a call returns."""

from types import SimpleNamespace

import pytest

from megaclass.bench import train
from megaclass.bench.epochs import measures, run_epoch
from megaclass.bench.runner import Member
from megaclass.bench.timing import Stopwatch


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

    def sleeps(self, seconds):
        """The host is busy with something else."""
        self.host += seconds

    def now(self):
        return self.host

    def wait(self):
        self.waits.append(self.host)
        self.host = max(self.host, self.free_at)

    def mark(self):
        return max(self.host, self.free_at)

    def between_ms(self, first, second):
        return (second - first) * 1000


def loads(device, *seconds):
    """A loader that makes the host wait so long for each of its batches."""
    for one in seconds:
        device.sleeps(one)
        yield one


def test_steps_are_timed_by_the_device_and_nobody_waits_between_them():
    device = Device()
    answer = run_epoch(loads(device, 0, 0, 0), lambda batch: device.works(0.1), 3, device)
    assert answer["samples_ms"] == pytest.approx([101, 100, 100])  # the first one waits for its launch
    assert answer["whole_ms"] == pytest.approx(301)
    assert len(device.waits) == 2  # before the first step, and after the last


def test_an_epoch_begins_and_ends_on_an_idle_device():
    device = Device()
    device.works(5.0)  # left over from whatever came before: a warm-up, an evaluation
    answer = run_epoch(loads(device, 0, 0), lambda batch: device.works(0.1), 2, device)
    assert answer["whole_ms"] == pytest.approx(201)
    assert device.host == device.free_at


def test_data_time_is_what_the_loop_waited_and_total_time_has_both():
    device = Device()
    answer = run_epoch(loads(device, 0.3, 0.02), lambda batch: device.works(0.1), 2, device)
    assert answer["data_ms"] == pytest.approx([300, 0])  # the device works through the second wait
    assert answer["samples_ms"] == pytest.approx(
        [401, 100]
    )  # the second wait is hidden behind the first step
    assert sum(answer["samples_ms"]) == pytest.approx(answer["whole_ms"])


def test_compute_is_what_a_device_does_that_never_waits():
    device = Device()
    answer = run_epoch(loads(device, *[0.09] * 50), lambda batch: device.works(0.1), 50, device)
    rates = measures([[answer]], rows_of_step=10)["rates"]
    assert rates["compute"] == pytest.approx(100, rel=0.02) and rates["total"] == pytest.approx(98, rel=0.02)


def test_a_latency_is_waited_for_one_by_one():
    device = Device()
    answer = run_epoch(loads(device, 0.01, 0.01), lambda batch: device.works(0.1), 2, device, one_by_one=True)
    assert answer["samples_ms"] == pytest.approx([111, 111])  # batch, launch, work: nothing overlaps
    assert answer["data_ms"] == pytest.approx([10, 10])
    assert len(device.waits) == 4


def test_a_stopwatch_counts_only_what_happens_inside():
    device = Device()
    watch = Stopwatch(SimpleNamespace(type="cuda"), wait=device.wait, clock=device.now)
    device.works(7.0)
    ms, result = watch.time_ms(lambda: device.works(0.25) or "done")
    assert ms == pytest.approx(251) and result == "done"


def test_progress_is_told_now_and_then():
    device, told = Device(), []
    run_epoch(loads(device, *[0.3] * 5), lambda batch: device.works(0), 5, device, told.append)
    assert told == pytest.approx([0.4, 0.8])


def test_speeds_of_an_epoch_and_their_harmonic_mean():
    fast = {"whole_ms": 1000, "samples_ms": [500, 500], "data_ms": [0, 0]}
    slow = {"whole_ms": 3000, "samples_ms": [1000, 2000], "data_ms": [500, 1000]}
    fields = measures([[fast], [slow]], rows_of_step=10)
    assert [epoch["total"] for epoch in fields["epochs"]] == pytest.approx([20, 6.667], rel=1e-3)
    assert fields["rates"]["total"] == pytest.approx(
        10
    )  # 40 rows in 4 s: a harmonic mean of epochs of one length
    assert fields["epochs"][1]["compute"] == pytest.approx(20 / 1.5, rel=1e-3)
    assert fields["epochs"][1]["data"] == pytest.approx(20 / 1.5, rel=1e-3)
    assert fields["epochs"][0]["data"] is None and fields["rates"]["data"] is None  # nothing was waited for
    assert fields["samples_ms"] == [500, 500, 1000, 2000] and fields["data_ms"] == [0, 0, 500, 1000]
    assert fields["samples_per_second"] == pytest.approx(10 / 0.75, rel=1e-3)  # by the median step


def test_an_epoch_takes_as_long_as_its_slowest_rank():
    first = {"whole_ms": 200, "samples_ms": [100, 100], "data_ms": [10, 0]}
    second = {"whole_ms": 210, "samples_ms": [120, 90], "data_ms": [0, 30]}
    fields = measures([[first, second]], rows_of_step=21)
    assert fields["samples_ms"] == [120, 100] and fields["data_ms"] == [10, 30]
    assert fields["rates"]["total"] == pytest.approx(200)


def test_warm_up_epochs_leave_no_sample(monkeypatch):
    case = SimpleNamespace(warmup=2, epochs=1, steps=1, world_size=1, benchmark="train")
    member = Member.__new__(Member)
    member.case, member.ended, member._turns, member._left_s = case, None, [], 1.0
    member._timeout_s = 1.0
    monkeypatch.setattr(member, "_ask", lambda request, on_progress: [{"ms": request["step"]}])
    for index in range(3):
        member.take_step(index)
    assert member._turns == [[{"ms": 2}]]


def test_training_that_is_measured_evaluates_nothing():
    config = train.cases.config_of(train.cases.TrainCase(recipe="glyphs"))  # whose recipe evaluates
    assert config.evaluate.task == "none"
