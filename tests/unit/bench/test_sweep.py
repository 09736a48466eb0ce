"""Sweeps that go on after a case that cannot be, and where an earlier go has stopped."""

import re
from dataclasses import replace

import pytest

from made_rows import write_rows
from megaclass.bench import sweep as sweep_module
from megaclass.bench.case import Implementation, Planned
from megaclass.bench.head import HeadCase
from megaclass.bench.sweep import measured, sweep
from megaclass.bench.turns import skipped
from megaclass.cli import main
from megaclass.results import machine
from megaclass.results.rows import read_rows


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch):
    def stand_in(case, found, timeout_s, on_step):
        """Rows of what would have been run."""
        for who in found:
            yield replace(skipped(case, who, "a stand-in"), status="ok", reason="", samples_ms=[1.0])

    monkeypatch.setattr(sweep_module, "run_case", stand_in)


def test_a_sweep_goes_on_after_a_case_that_cannot_be(tmp_path, capsys):
    plan = [
        Planned(case=HeadCase(batch_size=3, world_size=2), skip="does not divide"),
        Planned(case=HeadCase()),
        Planned(case=HeadCase(seed=1)),
    ]
    first, second, _ = sweep(plan, str(tmp_path / "rows.jsonl"), 1.0)
    assert first.status == "skipped" and first.reason == "does not divide" and second.status == "ok"
    assert read_rows(tmp_path / "rows.jsonl")[:2] == [first, second]
    said = capsys.readouterr().out
    assert re.search(r"left out: .*batch 3, .*: does not divide$", said, re.MULTILINE)
    assert "case 1 of 2: " in said  # what is left out does not begin
    assert "case 2 of 2, 0:00:00 left: " in said


@pytest.fixture
def kept(tmp_path):
    """Measure a case into a file, and say which rows of another one it has."""
    path = tmp_path / "rows.jsonl"

    def write(one, change=lambda row: row):
        write_rows(path, map(change, sweep_module.measure(one, 1.0)))
        return lambda one: measured([one], str(path)).get(0, [])

    return write


PEER = Implementation(name="peer", extra={"malloc": "tuned"})


def test_what_a_file_has_is_not_measured_again(kept):
    both = Planned(case=HeadCase(), implementations=(Implementation(), PEER))
    kept(both)
    has = kept(Planned(case=HeadCase(seed=1)))
    assert [row.implementation for row in has(both)] == ["megaclass", "peer"]
    assert [row.case["seed"] for row in has(Planned(case=HeadCase(seed=1)))] == [1]
    assert not has(Planned(case=HeadCase(seed=2)))
    another = Implementation(name="another")  # is missing
    assert not has(Planned(case=HeadCase(), implementations=(Implementation(), another)))
    assert not measured([both], "") and not measured([both], "none")


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({"status": "oom", "reason": "no memory"}, True),
        ({"status": "failed", "reason": "killed"}, False),
        ({"status": "skipped", "reason": "no such library"}, False),
        ({"environment": machine.snapshot() | {"driver": "older"}}, False),
        ({"environment": machine.snapshot() | {"variables": {"OMP_PROC_BIND": "x"}}}, False),
        ({"environment": machine.snapshot() | {"revision": "older"}}, False),
        ({"key": ""}, False),
    ],
)
def test_what_failed_or_comes_from_elsewhere_is_measured_again(kept, change, stays):
    has = kept(Planned(case=HeadCase()), lambda row: replace(row, **change))
    assert bool(has(Planned(case=HeadCase()))) == stays


def test_what_was_left_out_is_decided_again(kept):
    left_out = Planned(case=HeadCase(), skip="too few GPUs")
    has = kept(left_out)
    assert has(left_out)
    assert not has(Planned(case=HeadCase())) and not has(replace(left_out, skip="another reason"))


def test_variables_that_an_implementation_sets_are_no_other_environment(kept):
    tuned = Planned(case=HeadCase(), implementations=(Implementation(variables={"MALLOC_ARENA_MAX": "1"}),))

    def measured_so(row):
        variables = row.environment["variables"] | {"MALLOC_ARENA_MAX": "1"}
        return replace(row, environment=row.environment | {"variables": variables})

    has = kept(tuned, measured_so)
    assert has(tuned) and not has(Planned(case=HeadCase()))


def test_a_scaled_case_is_known_by_what_was_asked_and_rows_say_what_ran(kept):
    asked = HeadCase(batch_size=1024)
    has = kept(Planned(case=HeadCase(batch_size=64), original_case=asked, suite="big"))
    (row,) = has(Planned(case=HeadCase(batch_size=32), original_case=asked, suite="big"))
    assert row.case["batch_size"] == 64 and row.asked["batch_size"] == 1024 and row.suite == "big"
    assert not has(Planned(case=HeadCase(batch_size=64)))
    assert not has(Planned(case=HeadCase(batch_size=64), original_case=asked, suite="small"))


def test_ctrl_c_and_the_same_command_again_goes_on(monkeypatch, tmp_path, capfd):
    path = tmp_path / "rows.jsonl"
    words = ["bench", "head", "--sample-rate", "1,0.5", "--device", "cpu", "--output", str(path)]
    rows_of, cases = sweep_module.run_case, []

    def interrupted(case, *rest):
        cases.append(case)
        if len(cases) == 2:
            raise KeyboardInterrupt
        return rows_of(case, *rest)

    monkeypatch.setattr(sweep_module, "run_case", interrupted)
    assert main(words) == 130
    said = capfd.readouterr().err
    assert "interrupted" in said and "rows.jsonl" in said and "the same command goes on" in said
    (first,) = read_rows(path)
    monkeypatch.setattr(sweep_module, "run_case", rows_of)
    monkeypatch.setattr("megaclass.report.own.console_tables", lambda rows: "")  # these rows have no numbers
    assert main(words) == 0
    again, second = read_rows(path)
    assert again == first and second.case["sample_rate"] == 0.5
    assert main([*words, "--again"]) == 0 and len(read_rows(path)) == 4
    failing = ["bench", "head", "--device", "cpu", "--storage", "bf16", "--again"]
    monkeypatch.setattr(sweep_module, "run_case", lambda case, found, *rest: [skipped(case, found[0], "no")])
    assert main(failing) == 1  # no number came of it
