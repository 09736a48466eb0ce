"""Rows in the shape of NVIDIA's script, which other people's tools read."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from made_rows import INFER, PHOTOGRAPHS, row
from megaclass.errors import UserError
from megaclass.report.nvidia import as_report, check_report
from megaclass.results.stats import summary


def train(devices, batch, ips, **change):
    case = PHOTOGRAPHS | {"world_size": devices, "global_batch_size": devices * batch, "simulate_ranks": 1}
    return replace(row("train", case, 1.0, rates={"total": ips}), **change)


def infer(batch, samples_ms, ips):
    made = row("infer", INFER | {"batch_size": batch}, 1.0, rates={"total": ips})
    return replace(made, samples_ms=samples_ms, step_ms=summary(samples_ms))


def case(one):
    """As a sweep has it."""
    return SimpleNamespace(benchmark=one.benchmark, parameters=lambda: one.case)


def test_training_by_devices_and_batch_of_a_device():
    found = as_report([train(1, 192, 1376.0), train(8, 192, 10723.0)], "train")
    assert (found["model"], found["ngpus"], found["bs"]) == ("resnet50_imagenet", [1, 8], [192])
    assert found["metric_keys"] == ["train.ips"]
    assert found["metrics"] == {"1": {"192": {"train.ips": 1376.0}}, "8": {"192": {"train.ips": 10723.0}}}


def test_latencies_are_in_seconds():
    found = as_report([infer(2, [1.0, 3.0], 1000.0)], "val")["metrics"]["1"]["2"]
    assert found["val.ips"] == 1000.0 and found["val.latency_avg"] == 0.002
    assert found["val.latency_50"] == 0.002 and found["val.latency_100"] == 0.003


def test_both_stand_in_one_place_and_what_came_to_no_number_is_null():
    oom = train(1, 2, None, status="oom", reason="no memory", samples_ms=[], step_ms={})
    found = as_report([oom, infer(2, [1.0], 2000.0)], "train_val")["metrics"]["1"]["2"]
    assert found["train.ips"] is None and found["val.ips"] == 2000.0 and found["val.latency_avg"] == 0.001


@pytest.mark.parametrize("text", ["notes", "{}", '["ngpus", "bs", "metric_keys", "metrics"]'])
def test_other_files_are_left_alone(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"report\.json"):
        check_report(path, [case(train(1, 4, 1.0))])
    assert path.read_text() == text


def test_two_cases_for_one_place(tmp_path):
    one, other = case(train(1, 4, 1.0)), case(infer(4, [1.0], 1.0))
    with pytest.raises(UserError, match="--dtype"):
        check_report(tmp_path / "report.json", [one, one])
    check_report(tmp_path / "report.json", [one, other])
