"""What the log says: the familiar line, how long the loop waited, and for what."""

import re
import time

import numpy as np
import pytest
import torch

import tiny
from megaclass.data import loader as loading
from megaclass.data.augment import EvalTransform
from megaclass.data.dataset import Sample
from megaclass.data.decode import Decoded
from megaclass.data.loader import Loader
from megaclass.parallel.groups import World
from megaclass.results.events import StepEvent
from megaclass.train import loop
from megaclass.train.log import training_line, wait


@pytest.mark.parametrize(
    ("waited_ms", "copy_ms", "percent", "cause"),
    [
        ((0.0, 5.0, 9.0), 0.0, 0.0, None),
        ((30.0, 10.0, 18.0), 0.0, 30.0, "decode"),
        ((10.0, 15.0, 9.0), 0.0, 10.0, "disk"),
        ((10.0, 15.0, 9.0), 11.0, 21.0, "copy"),
        ((500.0, 1.0, 9.0), 900.0, 100.0, "copy"),
    ],
)
def test_the_longest_wait_is_named(waited_ms, copy_ms, percent, cause):
    assert wait(waited_ms, copy_ms, 0.1) == (pytest.approx(percent), cause)


class Slow:
    """A data set whose files take long to read."""

    num_classes = 1

    def __init__(self, read_s: float) -> None:
        self._read_s = read_s

    def __len__(self) -> int:
        return 8

    def read(self, index: int) -> Sample:
        time.sleep(self._read_s)
        return Sample(b"", 0)

    def describe(self, index: int) -> str:
        return ""


@pytest.mark.parametrize(("read_s", "decode_s", "cause"), [(0.01, 0.0, "disk"), (0.0, 0.01, "decode")])
def test_the_loader_tells_what_its_threads_did(monkeypatch, read_s, decode_s, cause):
    def decode_part(*_):
        time.sleep(decode_s)
        return Decoded.whole(np.zeros((8, 8, 3), np.uint8))

    monkeypatch.setattr(loading, "decode_part", decode_part)
    loader = Loader(Slow(read_s), EvalTransform(8), lambda step: (np.arange(4), np.arange(4)), workers=2)
    began = time.perf_counter()
    waited_ms = [(batch.wait_ms, batch.read_ms, batch.decode_ms) for batch in loader.steps(0, 3)]
    loop_ms, read_ms, decode_ms = map(sum, zip(*waited_ms, strict=True))
    assert read_ms + decode_ms >= 3 * 4 * 10
    percent, found = wait((loop_ms, read_ms, decode_ms), 0.0, time.perf_counter() - began)
    assert found == cause and percent > 50


# -- lines --------------------------------------------------------------------------------------------


def test_a_redirected_line_is_the_familiar_one_with_the_rest_of_the_way_behind_it(tmp_path, capsys):
    run = {"output": str(tmp_path / "run"), "log_every": 4}
    evaluate = {"task": "verification", "path": str(tmp_path / "records"), "pairs": 40}
    tiny.write_records(tmp_path / "records", classes=24)
    loop.run(tiny.config(tmp_path, run=run, evaluate=evaluate), World(0, 1, torch.device("cpu")))
    said = capsys.readouterr().out
    numbers = (
        r"Speed [\d.]+ samples/sec   Loss [\d.]+   LearningRate 0\.\d{4}   Epoch: \d   Global Step: (\d+)   "
    )
    rest = r"Wait: .*   Of: 10   Left: 0:00:\d\d   \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$"
    assert re.findall(f"^Training: {numbers}{rest}", said, re.MULTILINE) == ["4", "8", "10"]
    (warning,) = re.findall(r"^Warning: (.*)$", said, re.MULTILINE)
    assert warning.startswith(f"{tmp_path / 'records'} is trained on and evaluated on")


def test_the_log_line_names_the_cause():
    event = StepEvent(
        step=1, epoch=0, samples=8, loss=1.0, learning_rate=0.1, samples_per_second=5.0, wait_percent=12.4,
        wait_cause="disk", grad_norm=1.0, skipped_steps=0, damaged_samples=3, time_s=1.0,
    )  # fmt: skip
    assert training_line(event) == (
        "Training: Speed 5.00 samples/sec   Loss 1.0000   LearningRate 0.1000   Epoch: 0   Global Step: 1   "
        "Wait: 12% (disk)   Damaged: 3"
    )
