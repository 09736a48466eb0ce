"""Faults of one rank: kills and signals, what the disk refuses, and damage before a resume."""

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from faults.bench import EVERY, SAVED, STEPS, Bench
from faults.child import Plan
from faults.scenes import Fault, alone, scene

KILLED = -9
SIGNALS = {
    "SIGTERM": (75, -15),
    "SIGUSR1": (75, -10),
    "SIGHUP": (75, -1),
    "SIGINT": (130, -2),
}  # and by default
NO_ROOM = "No space left on device|are free; make room"
REASONS = {"ENOSPC": NO_ROOM, "EIO": "Input/output error", "short": NO_ROOM, "full": NO_ROOM}


def of_save(bench: Bench, step: int) -> list[str]:
    return [call for call in bench.calls if f"step-{step:08d}" in call]


# -- kills and signals ---------------------------------------------------------------------------------


def kills(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for number in range(40):
        plan = Plan("SIGKILL", step=moments.randrange(STEPS - 1), delay_s=moments.uniform(0, 0.015))
        yield alone(f"{number}: after step {plan.step}", plan, KILLED)


def kills_in_saves(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for step in (EVERY, 3 * EVERY):  # the first, and one that deletes an earlier one
        for call in of_save(bench, step):
            yield alone(call, Plan("SIGKILL", call), KILLED)


def kills_beside(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for number in range(20):
        step, delay_s = moments.randrange(EVERY, STEPS), moments.uniform(0, 0.01)
        plan = Plan("SIGKILL", step=step, delay_s=delay_s, slow_s=0.01)
        yield alone(f"{number}: after step {step}", plan, KILLED, words=())


def signals(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    how: dict[str, Any] = {"words": (), "within_s": 10}
    for name, (status, default) in SIGNALS.items():
        for number in range(8):
            step, delay_s = moments.randrange(1, STEPS - 1), moments.uniform(0.0001, 0.003)
            plan = Plan(name, step=step, delay_s=delay_s)
            yield alone(f"{name} {number}: after step {step}", plan, status, **how)
        for number in range(4):
            plan = Plan(name, step=0, delay_s=moments.uniform(0, 0.06))
            yield alone(f"{name} {number}: before the first step", plan, status, default, **how)
        in_save = [call for call in of_save(bench, SAVED) if "delete" not in call]  # that is at the end
        for call in moments.sample(in_save, 6):
            for slow_s in (0.0, 0.1):
                plan = Plan(name, call, slow_s=slow_s)
                yield alone(f"{name} at {call}, {slow_s} s an fsync", plan, status, **how)


def second_signals(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for name, (status, default) in SIGNALS.items():
        for again_s in (1.2, 1.6, 2.0):  # one that comes within a second is taken for the same wish
            plan = Plan(name, step=SAVED, delay_s=0.001, again_s=again_s, slow_s=1.0)
            allowed = (status, default, 128 - default)
            yield alone(f"{name}, again after {again_s} s", plan, *allowed, words=(), within_s=again_s + 2)


# -- the disk ------------------------------------------------------------------------------------------


def _is_silent(call: str, resumed: bool) -> bool:
    """Whether nobody need hear that the call was refused: a deletion that the next save makes up for, the flush of a
    directory in which the file itself was flushed, a directory that is there already."""
    operation, name, number = call.split(" ")
    is_there = operation == "mkdir" and "step" not in name and (resumed or number != "1")
    is_deletion = operation in ("unlink", "rmdir", "truncate") or "delete" in name
    return is_there or is_deletion or (operation, name) == ("fsync", ".")


def _refused(calls: list[str], errors: tuple[str, ...], resumed: bool = False) -> Iterator[Fault]:
    for call in calls:
        operation = call.partition(" ")[0]
        for error in errors:
            if error != "short" or operation == "write":
                says = "" if _is_silent(call, resumed) else REASONS[error]
                # Once it trains a run goes on. At the end it may fail: without its last checkpoint or result it must.
                only_log = error != "full" and ("events.jsonl" in call or ".png" in call)
                run_on = range(1, STEPS + 1 if only_log else STEPS)
                how: dict[str, Any] = {"run_on": run_on, "says": says, "resumed": resumed}
                yield alone(f"{error} at {call}", Plan(error, call), 0, 2, **how)


def refused(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    yield from _refused(bench.calls, ("ENOSPC", "EIO", "short"))


def refused_to_resumes(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    yield from _refused(bench.calls_of_resume, ("ENOSPC", "EIO"), resumed=True)


def full_disks(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    taking = [call for call in bench.calls if call.startswith(("write", "open", "mkdir"))]
    yield from _refused(moments.sample(taking, 20), ("full",))


def _mount(run: Path, size: str) -> None:
    run.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(run)], check=True, capture_output=True)


def small_disks(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for kilobytes in (8, 64, 150, 220, 300, 410, 450, 500):
        yield scene(
            f"a disk of {kilobytes} kB",
            statuses={0: (0, 2)},
            says=NO_ROOM,
            spoil=partial(_mount, size=f"size={kilobytes}k"),
            between=partial(_mount, size="remount,size=64m"),
        )
    for limit in (1_000, 8_000, 100_000):
        plan = Plan("limit", step=0, limit_bytes=limit)
        yield alone(f"files of at most {limit} bytes", plan, 0, 2, says="File too large")


# -- damage --------------------------------------------------------------------------------------------


def flip(run: Path, file: str, where: float) -> None:
    content = bytearray((run / file).read_bytes())
    content[min(int(where * len(content)), len(content) - 1)] ^= 0x10
    (run / file).write_bytes(content)


def _cut(run: Path, file: str, share: float) -> None:
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: min(int(share * len(content)), len(content) - 1)])


def _damaged(file: str, flips: int, moments: random.Random, **how: Any) -> Iterator[Fault]:
    spoils: dict[str, Callable[[Path], Any]] = {f"{file} is gone": lambda run: (run / file).unlink()}
    for place in (0.0, *(moments.random() for _ in range(flips)), 1.0):
        spoils[f"bit flipped at {place:.1%} of {file}"] = partial(flip, file=file, where=place)
    for share in (0.0, moments.random(), 1.0):
        spoils[f"{file} cut to {share:.1%}"] = partial(_cut, file=file, share=share)
    for name, spoil in spoils.items():
        yield scene(name, resumed=True, spoil=spoil, **how)


def damaged_checkpoints(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    newest = f"step-{SAVED:08d}"
    for path in sorted((bench.killed / "run" / "checkpoints" / newest).iterdir()):
        yield from _damaged(f"checkpoints/{newest}/{path.name}", 4, moments, statuses={0: (0,)}, says=newest)
    for copy in ("step-00000009", "step-00000099"):
        yield scene(
            f"a copy of {newest} named {copy}",
            statuses={0: (0,)},
            says=copy,
            resumed=True,
            spoil=lambda run, copy=copy: shutil.copytree(run / f"checkpoints/{newest}", run / f"checkpoints/{copy}"),
        )


def damaged_logs(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    yield from _damaged("events.jsonl", 8, moments, statuses={0: (0,)})
    for name, more in (("half a line", b'{"event": "st'), ("zeros", bytes(512)), ("an empty line", b"\n")):

        def append(run: Path, more: bytes = more) -> None:
            with (run / "events.jsonl").open("ab") as file:
                file.write(more)

        yield scene(f"{name} after events.jsonl", statuses={0: (0,)}, resumed=True, spoil=append)


def damaged_settings(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    def mend(run: Path) -> None:
        shutil.copy(bench.killed / "run" / "config.toml", run)

    yield from _damaged("config.toml", 6, moments, statuses={0: (0, 2)}, mend=mend)
