"""Turns, rows and early ends, with small scripts in place of the workers."""

import sys

import pytest

from megaclass.bench import runner
from megaclass.bench.old_head.cases import HeadCase
from megaclass.bench.processes import Crew
from megaclass.bench.runner import Entry, run_case

# What a worker does is told by its options; it writes its turns into a file that all of them share.
WORKER = """
import json, os, sys, time
job = json.loads(sys.stdin.readline())
does, log = job["options"], job["options"]["log"]
def tell(**answer):
    print(json.dumps(answer), flush=True)
def note(text):
    with open(log, "a") as file:
        file.write(does["name"] + text + " ")
note("+")
if does.get("oom_in_company") and open(log).read().count("+") > 1:
    tell(status="oom", reason="full")
    time.sleep(60)
tell(ready=True)
for line in sys.stdin:
    request = json.loads(line)
    if "finish" in request:
        tell(memory_mb={"process": does["mb"], "allocated": None}, facts={"kernels": "torch"}, environment={"rank": 0},
             limits={"limit_flops_per_second": 8.0, "limit_bytes_per_second": 4.0})
    elif request["step"] == does.get("fails_at"):
        exec(does["fails_by"])
    else:
        note(str(request["step"]))
        tell(ms=does["ms"] + request["step"], loss=1.0)
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Run workers that are told what to do; returns their rows and the order of their turns."""
    monkeypatch.setattr(
        runner, "Crew", lambda size, variables: Crew(size, variables, [sys.executable, "-S", "-c", WORKER])
    )

    def run(*does, timeout_s=60.0, **case):
        log = tmp_path / "log"
        log.write_text("")
        entries = [
            Entry(options={"log": str(log), "name": "abc"[i], "ms": 1.0 + i, "mb": 10.0 + i} | one)
            for i, one in enumerate(does)
        ]
        rows = list(run_case(HeadCase(**{"steps": 3, "warmup": 1, **case}), entries, timeout_s))
        return rows, log.read_text().split()

    return run


def test_they_take_turns_and_every_other_round_runs_backwards(measured):
    rows, turns = measured({}, {}, {})
    assert " ".join(turns) == "a+ b+ c+ a0 b0 c0 c1 b1 a1 a2 b2 c2 c3 b3 a3"
    assert [row.samples_ms for row in rows] == [[2, 3, 4], [3, 4, 5], [4, 5, 6]]  # without the warm-up
    assert {row.status for row in rows} == {"ok"} and len({row.group for row in rows}) == 1


def test_a_row_holds_what_the_workers_told(measured):
    (row,), _ = measured({}, num_classes=10, embedding_dim=4, batch_size=2, world_size=2, storage="bf16")
    assert row.step_ms["p50"] == 3 and row.samples_per_second == pytest.approx(2 / 0.003, abs=0.001)
    assert row.case["kernels"] == "torch" and row.environment == {"rank": 0}
    assert row.memory_mb == {"process": 10, "allocated": None}
    flops, moved = 8 * 2 * 4 * 10, 5 * 2 * 4 * 10
    assert (row.work["flops"], row.work["bytes"]) == (flops, moved)
    assert row.work["flops_per_second"] == pytest.approx(flops / 0.003)
    assert row.work["limit_flops_per_second"] == 16  # of both ranks


@pytest.mark.parametrize(
    ("fails_by", "status", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "failed", "SIGKILL"),
        ("sys.exit('no luck')", "failed", "no luck"),
        ("tell(status='oom', reason='all gone')", "oom", "all gone"),
    ],
)
def test_one_that_ends_early_stops_nobody(measured, fails_by, status, reason):
    (ours, other), _ = measured({}, {"fails_at": 2, "fails_by": fails_by})
    assert ours.status == "ok" and len(ours.samples_ms) == 3
    assert other.status == status and reason in other.reason
    assert other.samples_ms == [3] and not other.step_ms and other.samples_per_second is None


def test_a_timeout_is_a_row_that_says_how_far_it_came(measured):
    (ours, other), _ = measured({}, {"fails_at": 3, "fails_by": "time.sleep(60)"}, timeout_s=3.0)
    assert ours.status == "ok"
    assert other.status == "timeout" and other.reason == "not done in 3 s (2 of 3 steps)"


def test_one_without_memory_in_company_gets_the_machine_for_itself(measured):
    (ours, other), turns = measured({}, {"oom_in_company": True}, steps=1, warmup=0)
    assert turns.count("b+") == 2
    assert ours.status == "ok" and other.status == "oom"  # the stand-in still sees the first one's line
    assert ours.group != other.group
