"""How a difference between ranks is told; that it is seen at all is tested in tests/dist/test_failures.py."""

import pytest

import tiny
from megaclass.config import values
from megaclass.parallel.agreement import difference, facts_of_config

ALIKE = {"optim.lr": "0.1", "run.seed": "0"}


@pytest.mark.parametrize(
    ("others", "line"),
    [
        ([ALIKE], ""),
        ([{"run.seed": "0", "optim.lr": "0.1"}], ""),
        ([{**ALIKE, "optim.lr": "0.2"}], "optim.lr is 0.1 on rank 0 and 0.2 on rank 1"),
        ([{**ALIKE, "run.seed": "1"}, ALIKE], "run.seed is 0 on rank 0 and 1 on rank 1"),
        ([{"run.seed": "0"}], "optim.lr is 0.1 on rank 0 and missing on rank 1"),
        ([{**ALIKE, "run.seed": ""}], "run.seed is 0 on rank 0 and '' on rank 1"),
        ([{**ALIKE, "run.seed": "\x1b[2J"}], r"run.seed is 0 on rank 0 and '\x1b[2J' on rank 1"),
        ([{**ALIKE, "run.seed": "9" * 100}], f"run.seed is 0 on rank 0 and {'9' * 80}... on rank 1"),
        ([ALIKE, {**ALIKE, "run.seed": "1"}, {}], "run.seed is 0 on rank 0 and 1 on rank 2; more ranks that differ: 1"),
        (
            [{"optim.lr": "0.2", "run.seed": "1"}],
            "optim.lr is 0.1 on rank 0 and 0.2 on rank 1; run.seed is 0 on rank 0 and 1 on rank 1",
        ),
    ],
)
def test_what_differs_is_named_with_its_values_and_ranks(others, line):
    assert difference([ALIKE, *others]) == (line and f"ranks differ: {line}: all ranks need the same")


def test_two_long_values_that_begin_alike_differ():
    assert difference([{"a": "9" * 90}, {"a": "9" * 91}])


def test_every_setting_is_compared_but_those_of_a_machine(tmp_path):
    config = tiny.config(tmp_path)
    facts = facts_of_config(config)
    assert values(config).keys() - facts.keys() == {"run.device", "run.threads", "data.workers"}
    assert (facts["data.path"], facts["evaluate.path"], facts["optim.lr"]) == ("given", "not given", "0.01")
