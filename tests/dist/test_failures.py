"""Ranks that fail, die, stop or never come: who hears of it, how soon, and how a run goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from megaclass.config import values
from megaclass.errors import LOST_RANK_STATUS, LostRankError, UserError
from megaclass.models import registry
from megaclass.parallel import groups
from megaclass.parallel.agreement import facts_of_config
from megaclass.results.events import EndEvent, StartEvent, StepEvent
from ranks import SERVER, free_port, meeting, start_command

pytestmark = pytest.mark.dist

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
FAULTY = str(Path(__file__).with_name("faulty.py"))
EVERY, KILLED_AT, RAISED_AT = 4, 6, 11  # steps
SETTINGS = {
    "run": {"checkpoint_every": EVERY},
    "model": {"name": "smooth", "sync_norm": True},
    "head": {"sample_rate": 0.5},
    "schedule": {"steps": 12},
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A run of two ranks of which one was killed, which torchrun started again, and of which the other one raised."""
    folder = tmp_path_factory.mktemp("failed")
    recipe = tiny.recipe(folder, **SETTINGS)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--max-restarts", "1", FAULTY, str(folder), f"kill:1:{KILLED_AT},raise:0:{RAISED_AT}"),
        *("train", recipe, "--run.output", str(folder / "run")),
    ]
    began = time.monotonic()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return folder, done, time.monotonic() - began


def test_an_exception_of_one_rank_is_shown_and_ends_the_others(failed):
    _, done, seconds = failed
    assert done.returncode == 1 and seconds < 60  # the start, the restart and both ends
    report = done.stderr[done.stderr.index("Root Cause") :]
    assert "rank      : 0 " in report and "ArithmeticError: the fault of this test" in report
    assert "faulty.py" in report  # the traceback
    assert done.stdout.count("Global Step: 10 ") == 1  # the main rank speaks, the other is silent


def test_a_job_that_may_be_restarted_names_its_directory(refused, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    refused(["train", "glyphs"], "run.output: torchrun may start this job again")


def test_a_killed_rank_is_restarted_and_the_curve_goes_on(failed, tmp_path, monkeypatch):
    folder, *_ = failed
    run = folder / "run"
    starts = tiny.events(run, StartEvent)
    assert [(event.world_size, event.resumed_from_step) for event in starts] == [(2, None), (2, EVERY)]
    (end,) = (event.reason for event in tiny.events(run, EndEvent))
    assert end == "ArithmeticError: the fault of this test"
    told = [(event.step, event.loss) for event in tiny.events(run, StepEvent)]
    assert [step for step, _ in told] == list(range(1, RAISED_AT + 1))

    monkeypatch.setitem(registry.BACKBONES, "smooth", tiny.smooth)
    directory, _ = tiny.run(tmp_path, **SETTINGS)
    alone = [event.loss for event in tiny.events(directory.path, StepEvent)]
    assert [loss for _, loss in told] == pytest.approx(alone[:RAISED_AT], rel=1e-4)


# -- ranks that fall silent ---------------------------------------------------------------------------


def silent(rank, ranks, port, stopped, folder):
    """One rank stops after the start; the others work for longer than the time of silence, and then wait for it."""
    os.environ |= meeting(rank, ranks, port)
    with (folder / f"said-{rank}").open("w") as said:
        os.dup2(said.fileno(), 2)
    try:
        with groups.started("cpu", 60.0, heartbeat_s=1.0):
            time.sleep(1.5)  # slow work is no silence
            groups.barrier()
            (folder / f"met-{rank}").touch()
            if rank == stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            groups.barrier()
    except LostRankError:  # gloo saw the end of the one that noticed first
        sys.exit(LOST_RANK_STATUS)


@pytest.mark.parametrize(
    ("ranks", "stopped", "said"),
    [
        (3, 2, "rank 2 on {host} was silent for 1 s: its process was killed or stopped"),
        (2, 0, "has not answered for 1 s"),  # rank 0 holds the store, where there is no torchrun
    ],
)
def test_a_rank_that_stops_is_named_and_ends_the_others(tmp_path, ranks, stopped, said):
    port = free_port()
    processes = [SERVER.Process(target=silent, args=(rank, ranks, port, stopped, tmp_path)) for rank in range(ranks)]
    for process in processes:
        process.start()
    try:
        others = [process for rank, process in enumerate(processes) if rank != stopped]
        for process in others:
            process.join(timeout=60)
        lines = [line for file in tmp_path.glob("said-*") for line in file.read_text().splitlines()]
        told = [line for line in lines if line.startswith("megaclass: rank ")]
        assert [process.exitcode for process in others] == [LOST_RANK_STATUS] * len(others), lines
        assert told and all(said.format(host=socket.gethostname()) in line for line in told), lines
    finally:
        processes[stopped].kill()
        processes[stopped].join()
    assert len(list(tmp_path.glob("met-*"))) == ranks


def test_a_rank_that_never_comes(monkeypatch):
    for name, value in meeting(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    found = pytest.raises(LostRankError, match=r"rank 0 of 2 did not meet the others .* \(run.timeout_s 1\)")
    with found, groups.started("cpu", 1.0):
        pass


STRANGE = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"RANK": "x"}, "RANK is 'x': a number of 0 to 1 is needed"),
        ({"RANK": "2"}, "RANK is '2': a number of 0 to 1 is needed"),
        ({"RANK": None}, "RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"MASTER_ADDR": "nowhere.invalid"}, "MASTER_ADDR is 'nowhere.invalid'"),
    ],
)
def test_an_environment_that_describes_no_job(refused, tmp_path, monkeypatch, change, line):
    for name, value in (STRANGE | change).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    refused(["train", tiny.recipe(tmp_path)], line)


@pytest.mark.parametrize(("rank", "status", "line"), [(0, 2, "is taken by another"), (1, 75, "does not answer as")])
def test_a_stranger_at_the_port(tmp_path, rank, status, line):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        words = ["train", tiny.recipe(tmp_path), "--run.timeout_s", "1"]
        variables = meeting(rank, 2, str(stranger.getsockname()[1]))
        process = start_command(words, tmp_path / "errors", variables)
        process.join(timeout=40)
    told = (tmp_path / "errors").read_text().splitlines()
    assert process.exitcode == status and line in told[-1], told


# -- ranks that were started differently -------------------------------------------------------------

DIFFERENT = {
    "run.seed": 1, "run.deterministic": True, "run.log_every": 7, "run.checkpoint_every": 3, "run.keep_last": 5,
    "run.max_skipped": 3, "data.num_classes": 6, "data.image_size": 24, "data.global_batch_size": 6,
    "data.accumulation": 2, "data.orientations": 2, "data.normalise": "imagenet", "data.on_error": "skip",
    "augment.flip": True, "model.width": 16, "model.dropout": 0.1, "head.m2": 0.3, "head.scale": 8.0,
    "head.sample_rate": 0.5, "head.precision": "bf16", "optim.lr": 0.2, "optim.momentum": 0.5,
    "optim.weight_decay": 0.1, "schedule.steps": 9, "precision.compute": "bf16", "evaluate.batch_size": 8,
}  # fmt: skip


def start_differently(rank, ports, folder):
    told = []
    for (key, value), port in zip(DIFFERENT.items(), ports, strict=True):
        os.environ |= meeting(rank, 2, port)
        section, name = key.split(".")
        config = tiny.config(folder, **({section: {name: value}} if rank else {}))
        try:
            with groups.started("cpu", 60.0, facts=facts_of_config(config)):
                told.append("they have started")
        except UserError as error:
            told.append(str(error))
    (folder / f"told-{rank}").write_text("\n".join(told))


def test_each_setting_that_differs_is_named_on_both_ranks(tmp_path):
    tiny.config(tmp_path)  # writes the data
    ports = [free_port() for _ in DIFFERENT]
    ranks = [SERVER.Process(target=start_differently, args=(rank, ports, tmp_path)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=100)
    first, second = ((tmp_path / f"told-{rank}").read_text().splitlines() for rank in (0, 1))
    assert first == second and len(first) == len(DIFFERENT)
    alike = values(tiny.config(tmp_path))
    for line, (key, value) in zip(first, DIFFERENT.items(), strict=True):
        assert f"{key} is {alike[key]} on rank 0 and {value} on rank 1" in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--optim.lr", "0.2"], "ranks differ: optim.lr is 0.01 on rank 0 and 0.2 on rank 1: all ranks need the same"),
        (["--optim.lr", "high"], "optim.lr: "),
        (["--run.device", "cuda"], "PyTorch sees no CUDA GPU"),
    ],
)  # fmt: skip
def test_what_one_rank_was_given_is_told_on_both_machines_before_they_start(tmp_path, words, line):
    recipe, port = tiny.recipe(tmp_path), free_port()
    started_s, ranks = time.monotonic(), []
    for rank, more in enumerate(([], words)):
        variables = meeting(rank, 2, port) | {"LOCAL_RANK": "0"}
        ranks.append(start_command(["train", recipe, *more], tmp_path / f"errors-{rank}", variables))
    for process in ranks:
        process.join(timeout=60)
    told = [(tmp_path / f"errors-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert [process.exitcode for process in ranks] == [2, 2], told
    assert told[0] == told[1] and len(told[0]) == 1 and line in told[0][0]
    assert time.monotonic() - started_s < 30 and not (tmp_path / "run").exists()  # 10 s where nothing else runs


# -- bad input ----------------------------------------------------------------------------------------


def both_ranks(folders, *words):
    """Exit status and standard error of a rank in each folder, started by hand: torchrun ends the other ranks before
    they can say anything."""
    port = free_port()
    errors = [folder / f"errors-{rank}" for rank, folder in enumerate(folders)]
    processes = [
        start_command(["train", *words], errors[rank], meeting(rank, 2, port), folder)
        for rank, folder in enumerate(folders)
    ]
    for process in processes:
        process.join(timeout=60)
    return [process.exitcode for process in processes], [file.read_text().splitlines() for file in errors]


def test_a_bad_setting_is_told_once(tmp_path):
    status, told = both_ranks([tmp_path, tmp_path], tiny.recipe(tmp_path), "--data.num_classes", "7")
    assert status == [2, 2] and told[1] == []
    assert len(told[0]) == 1 and "data.num_classes: 7" in told[0][0]
    assert not (tmp_path / "run").exists()


def test_what_one_rank_alone_meets_ends_the_others_without_a_traceback(tmp_path):
    recipe, path = tiny.recipe(tmp_path), tmp_path / "records" / "train.rec"
    content = bytearray(path.read_bytes())
    last_image = content.rindex(b"\xff\xd8\xff")
    content[last_image + 4 : last_image + 60] = bytes(56)
    path.write_bytes(content)
    status, told = both_ranks([tmp_path, tmp_path], recipe)
    assert [len(lines) for lines in told] == [1, 1], told
    (met,) = (rank for rank in (0, 1) if "damaged image" in told[rank][0])
    assert told[1 - met] == [f"megaclass: rank {1 - met} stops, since another rank has left or hangs"]
    assert (status[met], status[1 - met]) == (2, LOST_RANK_STATUS)


@pytest.mark.parametrize("lacks", [0, 1])
def test_data_missing_on_one_rank_is_told_by_all(tmp_path, lacks):
    """The linear head's parameters are broadcast as soon as the others have built it: nobody may wait there."""
    recipe = tiny.recipe(tmp_path, head={"kind": "linear"}, data={"path": "here"}, run={"output": "run"})
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    (folders[1 - lacks] / "here").symlink_to(tmp_path / "records")
    status, told = both_ranks(folders, recipe)
    assert status == [2, 2], told
    assert len(told[0]) == 1 and "data.path: here: no such file or directory" in told[0][0] and not told[1]
