"""Sweeps that go on after a case that cannot be, and where an earlier go has stopped."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from megaclass.bench.old_head.cases import HeadCase
from megaclass.bench.runner import Entry, skipped
from megaclass.bench.sweep import Measured, Planned, measure
from megaclass.results import machine
from megaclass.results.rows import Row, RowWriter

QUIET = SimpleNamespace(begins=lambda *what: None, step=lambda *what: None)


def stand_in(case, entries, timeout_s, on_step):
    """Runs nothing: rows of what would have been run."""
    for entry in entries:
        row = skipped(case, entry, "a stand-in")
        yield replace(row, status="ok", reason="", samples_ms=[1.0])


def test_a_sweep_goes_on_after_a_case_that_cannot_be():
    told = []
    watcher = SimpleNamespace(
        begins=lambda number, total, case, left_s: told.append((number, total, left_s is None)),
        step=lambda done, total: None,
    )
    plan = [
        Planned(case=HeadCase(batch_size=3, world_size=2), skip="does not divide"),
        Planned(case=HeadCase()),
        Planned(case=HeadCase(seed=1)),
    ]
    (first,), (second,), _ = measure(plan, 1.0, watcher, stand_in)
    assert first.status == "skipped" and first.reason == "does not divide" and second.status == "ok"
    assert told == [(1, 2, True), (2, 2, False)]  # what is left out does not begin
    json.dumps(first.case)


@pytest.fixture
def kept(tmp_path):
    """Measure a plan into a file, and say which rows of another plan it has."""
    path = tmp_path / "rows.jsonl"

    def write(plan, change=lambda row: row):
        with RowWriter(path) as writer:
            for rows in measure(plan, 1.0, QUIET, stand_in):
                for row in rows:
                    writer.write(change(row))
        return lambda planned, **how: Measured(str(path), **how).rows(planned)

    return write


def test_what_a_file_has_is_not_measured_again(kept):
    peer = [Entry(), Entry(implementation="peer", extra={"malloc": "tuned"})]
    plan = [Planned(case=HeadCase(), entries=peer), Planned(case=HeadCase(seed=1))]
    has = kept(plan)
    assert [row.implementation for row in has(plan[0])] == ["megaclass", "peer"]
    assert [row.case["seed"] for row in has(plan[1])] == [1]
    assert not has(Planned(case=HeadCase(seed=2)))
    assert not has(
        Planned(case=HeadCase(), entries=[Entry(), Entry(implementation="another")])
    )  # one is missing
    assert not has(plan[0], again=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: replace(row, status="failed", reason="killed"),
        lambda row: replace(row, status="timeout", reason="not done in 1 s"),
        lambda row: replace(row, status="skipped", reason="no such library"),
        lambda row: replace(row, environment=row.environment | {"driver": "older"}),
        lambda row: replace(row, environment=row.environment | {"variables": {"OMP_PROC_BIND": "x"}}),
        lambda row: replace(row, environment=row.environment | {"cpu": "another"}),
        lambda row: replace(row, environment=row.environment | {"revision": "older"}),
        lambda row: replace(row, key=""),
    ],
)
def test_what_failed_or_comes_from_elsewhere_is_measured_again(kept, change):
    plan = [Planned(case=HeadCase())]
    assert not kept(plan, change)(plan[0])


def test_a_row_of_a_case_without_memory_stays(kept):
    plan = [Planned(case=HeadCase())]
    assert kept(plan, lambda row: replace(row, status="oom", reason="no memory"))(plan[0])


def test_what_was_left_out_is_decided_again(kept):
    left_out = Planned(case=HeadCase(), skip="too few GPUs")
    has = kept([left_out])
    assert has(left_out)
    assert not has(Planned(case=HeadCase())) and not has(replace(left_out, skip="another reason"))


def test_variables_that_an_entry_sets_are_no_other_environment(kept):
    tuned = Planned(case=HeadCase(), entries=[Entry(variables={"MALLOC_ARENA_MAX": "1"})])

    def measured_so(row):
        return replace(
            row,
            environment=row.environment
            | {"variables": row.environment["variables"] | {"MALLOC_ARENA_MAX": "1"}},
        )

    has = kept([tuned], measured_so)
    assert has(tuned) and not has(Planned(case=HeadCase()))


def test_a_scaled_case_is_known_by_what_was_asked(kept):
    asked = HeadCase(batch_size=1024)
    plan = [Planned(case=HeadCase(batch_size=64), asked=asked, suite="big")]
    has = kept(plan)
    (row,) = has(Planned(case=HeadCase(batch_size=32), asked=asked, suite="big"))
    assert row.case["batch_size"] == 64 and row.asked["batch_size"] == 1024 and row.suite == "big"
    assert not has(Planned(case=HeadCase(batch_size=64)))
    assert not has(Planned(case=HeadCase(batch_size=64), asked=asked, suite="small"))


def test_what_rows_depend_on_besides_the_case_tells_them_apart(kept):
    has = kept([Planned(case=HeadCase(), identity={"data": "a"})])
    assert has(Planned(case=HeadCase(), identity={"data": "a"}))
    assert not has(Planned(case=HeadCase(), identity={"data": "b"}))


def test_no_file_has_no_rows(tmp_path):
    one = Planned(case=HeadCase())
    assert not Measured("").rows(one) and not Measured(str(tmp_path / "none")).rows(one)


def test_a_row_says_where_it_was_left_out():
    row = skipped(HeadCase(), Entry(changes={"precision": "bf16"}, extra={"malloc": "tuned"}), "no peer")
    assert isinstance(row, Row) and row.case["precision"] == "bf16" and row.case["malloc"] == "tuned"
    assert row.environment["cpu"] == machine.snapshot()["cpu"]
