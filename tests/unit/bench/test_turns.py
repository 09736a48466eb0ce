"""Processes that answer, hang and die, and implementations that take turns: small scripts stand for the worker."""

import sys
import time

import psutil
import pytest

from megaclass.bench import processes, turns
from megaclass.bench.case import Implementation
from megaclass.bench.head import HeadCase
from megaclass.bench.processes import Ended, Processes
from megaclass.bench.turns import run_case

PIPE = """
import os, sys, time
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
"""
ECHO = """
while True:
    pipe.send({name: os.environ.get(name) for name in pipe.recv()["names"]})
"""


def start(script, ranks=1, **variables):
    return Processes(ranks, variables, [sys.executable, "-S", "-c", PIPE + script])


def ended(script, ranks=1, timeout_s=20.0):
    with pytest.raises(Ended) as caught:
        team = start(script, ranks)
        try:
            team.ask({}, timeout_s)
        finally:
            team.close()
    return caught.value.status, caught.value.reason


def test_answers_come_in_rank_order_and_each_rank_knows_itself(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    team, alone = start(ECHO, 3, EXTRA="1", HOME=None), start(ECHO)
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "EXTRA", "HOME"]
    try:
        for _ in range(2):
            answers = team.ask({"names": names}, 20)
            assert [answer["RANK"] for answer in answers] == ["0", "1", "2"]
            assert answers[1] == {
                "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "EXTRA": "1", "HOME": None,
            }  # fmt: skip
        assert alone.ask({"names": ["WORLD_SIZE"]}, 20) == [{"WORLD_SIZE": None}]  # one process is no rank
    finally:
        team.close()
        alone.close()


@pytest.mark.parametrize(
    ("script", "ranks", "status", "reason"),
    [
        ("os.kill(os.getpid(), 9)", 1, "failed", "the process was killed by SIGKILL"),
        (
            "if os.environ['RANK'] == '1': os.kill(os.getpid(), 11)\ntime.sleep(60)",
            2,
            "failed",
            "(rank 1) was killed by SIGSEGV",
        ),
        ("print('so far so good'); sys.exit('no such thing')", 1, "failed", "exit status 1: no such thing"),
        ("pipe.send({'status': 'oom', 'reason': 'full'})", 1, "oom", "full"),
        ("pipe.send({'status': 'oom', 'reason': 'full'}); time.sleep(60)", 2, "oom", "full (rank "),
    ],
)
def test_how_a_process_ended_is_told(script, ranks, status, reason):
    found = ended(script, ranks)
    assert found[0] == status and reason in found[1]


def test_a_kill_that_the_kernel_counted_was_for_memory(monkeypatch):
    kills = iter([3, 4])
    monkeypatch.setattr(processes, "_kernel_kills", lambda: next(kills))
    status, reason = ended("os.kill(os.getpid(), 9)")
    assert status == "oom" and "SIGKILL" in reason


def ends(process):
    """Whether it is gone, or only to be reaped, within seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


# What a worker does is told by its options; it writes its turns into a file that all of them share.
WORKER = """
job = pipe.recv()
does, log = job["options"], job["options"]["log"]
def tell(**answer):
    pipe.send(answer)
def note(text):
    with open(log, "a") as file:
        file.write(does["name"] + text + " ")
note("+")
if does.get("oom_beside_others") and open(log).read().count("+") > 1:
    tell(status="oom", reason="full")
    time.sleep(60)
tell()
while True:
    request = pipe.recv()
    if "finish" in request:
        tell(memory_mb={"process": does["mb"], "allocated": None}, facts={"kernels": "torch"}, environment={"rank": 0},
             result={}, limits={"limit_flops_per_second": 8.0, "limit_bytes_per_second": 4.0})
    elif request["turn"] == does.get("fails_at"):
        exec(does["fails_by"])
    else:
        note(str(request["turn"]))
        tell(ms=does["ms"] + request["turn"], loss=1.0)
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Run workers that are told what to do; returns their rows and the order of their turns."""
    command = [sys.executable, "-S", "-c", PIPE + WORKER]
    monkeypatch.setattr(turns, "Processes", lambda size, variables: Processes(size, variables, command))

    def run(*does, timeout_s=60.0, on_step=lambda done, total: None, **case):
        log = tmp_path / "log"
        log.write_text("")
        found = [
            Implementation(options={"log": str(log), "name": "abc"[i], "ms": 1.0 + i, "mb": 10.0 + i} | one)
            for i, one in enumerate(does)
        ]
        rows = list(run_case(HeadCase(**{"steps": 3, "warmup": 1, **case}), found, timeout_s, on_step))
        return rows, log.read_text().split()

    return run


def test_they_take_turns_and_every_other_round_runs_backwards(measured):
    rows, order = measured({}, {}, {})
    assert " ".join(order) == "a+ b+ c+ a0 b0 c0 c1 b1 a1 a2 b2 c2 c3 b3 a3"
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


def test_one_that_ends_early_stops_nobody(measured):
    (ours, other), _ = measured({}, {"fails_at": 2, "fails_by": "os.kill(os.getpid(), 9)"})
    assert ours.status == "ok" and len(ours.samples_ms) == 3
    assert other.status == "failed" and "SIGKILL" in other.reason
    assert other.samples_ms == [3] and not other.step_ms and other.samples_per_second is None


@pytest.mark.process
def test_a_timeout_is_a_row_that_says_how_far_it_came_and_ends_all_that_was_started(measured, tmp_path):
    hangs = (
        "import subprocess\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n"
        "time.sleep(60)"
    )
    (ours, other), _ = measured({}, {"fails_at": 3, "fails_by": hangs}, timeout_s=2.0)
    assert ours.status == "ok"
    assert other.status == "timeout" and other.reason == "not done in 2 s (2 of 3 turns)"
    assert ends(int((tmp_path / "child").read_text()))


def test_one_without_memory_beside_others_gets_the_machine_for_itself(measured):
    (ours, other), order = measured({}, {"oom_beside_others": True}, steps=1, warmup=0)
    assert order.count("b+") == 2
    assert ours.status == "ok" and other.status == "oom"  # the stand-in still sees the first one's line
    assert ours.group != other.group


def test_ctrl_c_ends_all_of_them(measured):
    before, begun = set(psutil.Process().children()), set()

    def interrupt(done, total):
        begun.update(set(psutil.Process().children()) - before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured({}, {}, on_step=interrupt)
    assert len(begun) >= 2 and not any(process.is_running() for process in begun)
