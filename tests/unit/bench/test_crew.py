"""Processes that answer, hang, die and talk nonsense: small scripts stand for the worker."""

import os
import subprocess
import sys
import time

import pytest

from megaclass.bench import processes as crew
from megaclass.bench.processes import Crew, Ended

ECHO = """
import json, os, sys
for line in sys.stdin:
    names = json.loads(line)["names"]
    print(json.dumps({name: os.environ.get(name) for name in names}), flush=True)
"""


def start(script, ranks=1, **variables):
    return Crew(ranks, variables, [sys.executable, "-S", "-c", script])


def ended(script, ranks=1, timeout_s=20.0):
    with pytest.raises(Ended) as caught:
        team = start(script, ranks)
        try:
            team.ask({}, timeout_s)
        finally:
            team.close()
    return caught.value.status, caught.value.reason


def test_answers_come_in_rank_order_and_each_rank_knows_itself():
    team = start(ECHO, 3, EXTRA="1", HOME=None)
    try:
        for _ in range(2):
            answers = team.ask({"names": ["RANK", "LOCAL_RANK", "WORLD_SIZE", "EXTRA", "HOME"]}, 20)
            assert [answer["RANK"] for answer in answers] == ["0", "1", "2"]
            assert answers[1] == {
                "RANK": "1",
                "LOCAL_RANK": "1",
                "WORLD_SIZE": "3",
                "EXTRA": "1",
                "HOME": None,
            }
    finally:
        team.close()


def test_one_process_is_no_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    team = start(ECHO)
    try:
        assert team.ask({"names": ["WORLD_SIZE"]}, 20) == [{"WORLD_SIZE": None}]
    finally:
        team.close()


def test_a_process_that_is_killed_is_named_with_its_signal():
    assert ended("import os; os.kill(os.getpid(), 9)") == ("failed", "the process was killed by SIGKILL")
    status, reason = ended(
        "import os, time\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 11)\ntime.sleep(60)", 2
    )
    assert status == "failed" and "(rank 1)" in reason and "SIGSEGV" in reason


def test_a_kill_that_the_kernel_counted_was_for_memory(monkeypatch):
    counts = iter([3, 4])
    monkeypatch.setattr(crew, "_kernel_kills", lambda: next(counts))
    status, reason = ended("import os; os.kill(os.getpid(), 9)")
    assert status == "oom" and "SIGKILL" in reason


def test_an_exit_comes_with_the_last_words():
    status, reason = ended("import sys; sys.exit('no such thing')")
    assert status == "failed" and "exit status 1: no such thing" in reason


def test_what_a_process_tells_is_taken_as_it_is():
    script = """print('{"status": "oom", "reason": "no memory"}', flush=True)"""
    assert ended(script) == ("oom", "no memory")
    assert ended(script, 2)[1].startswith("no memory (rank ")


def test_a_process_that_hangs_is_given_up_and_ended(tmp_path):
    child = tmp_path / "child"
    script = f"""
import pathlib, subprocess, time
process = subprocess.Popen(["sleep", "60"])
pathlib.Path({str(child)!r}).write_text(str(process.pid))
time.sleep(60)
"""
    begin = time.monotonic()
    assert ended(script, timeout_s=1.0)[0] == "timeout"
    assert time.monotonic() - begin < 30
    deadline = time.monotonic() + 10  # what it started ends with it
    while alive(int(child.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(int(child.read_text()))


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return not state.stdout.startswith("Z")


def test_output_that_ends_while_the_process_goes_on(monkeypatch):
    monkeypatch.setattr(crew, "_GRACE_S", 0.2)
    status, reason = ended("import os, time; os.close(1); time.sleep(60)")
    assert status == "failed" and "hangs" in reason
