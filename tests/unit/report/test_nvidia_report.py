"""Rows in the shape of NVIDIA's script, which other people's tools read."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from made_rows import PHOTOGRAPHS, row
from megaclass.errors import UserError
from megaclass.report.nvidia import as_report, check_report


def train(devices, batch, ips, **change):
    case = PHOTOGRAPHS | {"world_size": devices, "global_batch_size": devices * batch, "simulate_ranks": 1}
    return replace(row("train", case, 1.0, rates={"total": ips}), **change)


def case(one):
    """As a sweep has it."""
    return SimpleNamespace(parameters=lambda: one.case)


def test_training_by_devices_and_batch_of_a_device():
    found = as_report([train(1, 192, 1376.0), train(8, 192, 10723.0)])
    assert (found["model"], found["ngpus"], found["bs"]) == ("resnet50_imagenet", [1, 8], [192])
    assert found["metric_keys"] == ["train.ips"]
    assert found["metrics"] == {"1": {"192": {"train.ips": 1376.0}}, "8": {"192": {"train.ips": 10723.0}}}


def test_what_came_to_no_number_is_null():
    oom = train(1, 2, None, status="oom", reason="no memory", samples_ms=[], step_ms={})
    assert as_report([oom])["metrics"] == {"1": {"2": {"train.ips": None}}}


@pytest.mark.parametrize("text", ["notes", "{}", '["ngpus", "bs", "metric_keys", "metrics"]'])
def test_other_files_are_left_alone(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"report\.json"):
        check_report(path, [case(train(1, 4, 1.0))])
    assert path.read_text() == text


def test_two_cases_for_one_place(tmp_path):
    one, other = case(train(1, 4, 1.0)), case(train(1, 8, 1.0))
    with pytest.raises(UserError, match="--dtype"):
        check_report(tmp_path / "report.json", [one, one])
    check_report(tmp_path / "report.json", [one, other])
