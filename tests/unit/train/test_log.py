"""What the log says: the familiar line, how long the loop waited, and for what."""

import re
import time

import pytest

import tiny
from in_memory import InMemory, in_order
from megaclass.data import loader as loading
from megaclass.data.augment import EvalTransform
from megaclass.data.loader import Loader
from megaclass.train.log import wait


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


def slower(function):
    def slow(*arguments):
        time.sleep(0.01)
        return function(*arguments)

    return slow


@pytest.mark.parametrize(("place", "name", "cause"), [(InMemory, "read", "disk"), (loading.Memory, "fitted", "decode")])
def test_the_loader_tells_what_its_threads_did(monkeypatch, place, name, cause):
    monkeypatch.setattr(place, name, slower(getattr(place, name)))
    loader = Loader(InMemory(12), EvalTransform(24), in_order(4), workers=2)
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
    tiny.run(tmp_path, run=run, evaluate=evaluate)
    said = capsys.readouterr().out
    numbers = r"Speed [\d.]+ samples/sec   Loss [\d.]+   LearningRate 0\.\d{4}   Epoch: \d   Global Step: (\d+)   "
    rest = r"Wait: .*   Of: 10   Left: 0:00:\d\d   \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$"
    assert re.findall(f"^Training: {numbers}{rest}", said, re.MULTILINE) == ["4", "8", "10"]
    (warning,) = re.findall(r"^Warning: (.*)$", said, re.MULTILINE)
    assert warning.startswith(f"{tmp_path / 'records'} is trained on and evaluated on")
