"""A fault from its beginning to the end of the resume: a run, what goes wrong in it, and the rules that are asked."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from faults import child, rules
from faults.bench import INLINE, LIMIT_S, SAVED, STEPS, Bench
from faults.child import Plan
from faults.rules import Ended

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


@dataclass
class Found:
    """What came of a fault. ``lost``: steps that were trained again."""

    failed: list[str] = field(default_factory=list)
    lost: int | None = None


class Fault(NamedTuple):
    name: str
    happen: Callable[[Bench, Path, int | None], Found]  # where, and how many steps may be lost


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A start of the command in which something goes wrong, and what must come of it.

    plans: what strikes on which rank. statuses: those that the ranks may end with; a rank without is not looked at.
    run_on: of a fault after one of these steps the run may only end well. says: what somebody must be told.
    resumed: it is the resume of a killed run. spoil: done to the run directory before; between: after. mend: the same
    where the start has failed, and where it has not nothing more is asked.
    then: how many ranks resume, 0: as many.
    """

    plans: dict[int, Plan] = field(default_factory=dict)
    statuses: dict[int, tuple[int, ...]]
    run_on: range = range(0)
    says: str = ""
    within_s: float = LIMIT_S
    recipe: str = "plain"
    ranks: int = 1
    then: int = 0
    words: Sequence[str] = INLINE
    resumed: bool = False
    spoil: Callable[[Path], None] | None = None
    between: Callable[[Path], None] | None = None
    mend: Callable[[Path], None] | None = None


def play(bench: Bench, folder: Path, most_lost: int | None, scene: Scene) -> Found:
    """The start, its fault, and the resume. most_lost: None where no bound is promised."""
    run, found, attempt = folder / "run", Found(), 1
    if scene.resumed:
        shutil.copytree(bench.killed, folder)
        attempt = 2
    if scene.spoil:
        scene.spoil(run)
    words = [*scene.words, *(["--resume"] if scene.resumed else [])]
    ended = bench.train(folder, attempt, *words, recipe=scene.recipe, ranks=scene.ranks, plans=scene.plans)
    struck = rules.struck_after(folder, attempt)
    if struck is None and any(plan.do for plan in scene.plans.values()):
        found.failed.append("the fault did not strike")
    for rank, statuses in scene.statuses.items():
        allowed = (0,) if struck in scene.run_on else statuses
        found.failed += rules.status_is(ended[rank : rank + 1], allowed, rank)
    looked_at = [ended[rank] for rank in scene.statuses]
    found.failed += rules.one_line(looked_at)
    found.failed += rules.soon(looked_at, scene.within_s)
    found.failed += rules.saved_where_well(ended, run, STEPS)
    if scene.spoil and scene.resumed:
        found.lost = rules.lost(folder, attempt, SAVED)
    if scene.says and not (scene.spoil and found.lost == 0):
        found.failed += rules.told(ended, scene.says)
    if scene.mend and ended[0].status == 0:
        return found
    for work in filter(None, (scene.between, scene.mend)):
        work(run)
    return settle(bench, folder, most_lost, found, attempt + 1, scene.recipe, scene.then or scene.ranks, scene.words)


def settle(
    bench: Bench,
    folder: Path,
    most_lost: int | None,
    found: Found,
    attempt: int,
    recipe: str,
    ranks: int,
    words: Sequence[str] = INLINE,
) -> Found:
    """What holds after every fault: the state is intact, and a resume reaches the end of a run without faults."""
    run, before = folder / "run", rules.trained(folder, attempt - 1)
    found.failed += rules.intact(run, before[-1] - most_lost if before and most_lost is not None else 0)
    ended = bench.train(folder, attempt, *words, "--resume", recipe=recipe, ranks=ranks)
    reasons = [*rules.status_is(ended, (0,))] or [*rules.one_line(ended)]
    found.failed += [f"resume: {reason}" for reason in reasons]
    if any(process.status != 0 for process in ended):
        return found
    found.lost = max(found.lost or 0, rules.lost(folder, attempt))
    if most_lost is not None and found.lost > most_lost:
        found.failed.append(f"{found.lost} steps lost, at most {most_lost} are allowed")
    other = bench.plain if recipe == "plain" else bench.smooth
    found.failed += rules.same_samples(folder, other)
    found.failed += rules.same_losses(run, other / "run", 0.0 if recipe == "plain" else 1e-5)
    if recipe == "plain":
        found.failed += rules.same_bits(run, other / "run")
    found.failed += rules.nothing_left(run, other / "run")
    return found


def under_torchrun(
    bench: Bench,
    folder: Path,
    most_lost: int | None,
    plan: Plan,
    restarts: int,
    statuses: tuple[int, ...],
    to_agent: str = "",
) -> Found:
    """Two ranks as torchrun starts them, one of which dies; or the agent gets a signal when the plan strikes."""
    folder.mkdir()
    log = folder / "torchrun.txt"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--max-restarts", str(restarts), str(Path(child.__file__)), str(folder), json.dumps(vars(plan))),
        *("train", str(bench.folder / "smooth.toml"), "--run.output", str(folder / "run"), "--resume"),
        *INLINE,
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file)
    status, deadline = None, time.monotonic() + LIMIT_S
    while (status := process.poll()) is None and time.monotonic() < deadline:
        if to_agent and rules.struck_after(folder, 1) is not None:
            process.send_signal(signal.Signals[to_agent])
            to_agent = ""
        time.sleep(0.005)
    if status is None:  # it ends its ranks before itself
        process.terminate()
        process.wait(LIMIT_S)
    said = log.read_text(errors="replace")
    found = Found(["the fault did not strike"] if rules.struck_after(folder, 1) is None else [])
    found.failed += rules.status_is([Ended(status, "", said, 0)], statuses)
    if restarts:
        found.lost = rules.lost(folder, 2)
    return settle(bench, folder, most_lost, found, 2 + restarts, "smooth", 2)


def disagreeing(
    bench: Bench,
    folder: Path,
    most_lost: int | None,
    setting: str,
    values: tuple[str, str],
    named: tuple[str, ...] = (),
) -> Found:
    """Two ranks that are told different things: both stop before a file is written, and say what differs.

    named: what must be said of the difference, where it is not the values.
    """
    each = {rank: (f"--{setting}", value) for rank, value in enumerate(values)}
    ended = bench.train(folder, 1, recipe="smooth", ranks=2, each=each)
    found = Found([*rules.status_is(ended, (2,)), *rules.one_line(ended)])
    for text in (setting, *(named or values)):
        found.failed += rules.told(ended, text)
    if (folder / "run").exists() and any((folder / "run").iterdir()):
        found.failed.append("files were written")
    return found


@contextlib.contextmanager
def folder_of(bench: Bench, name: str, keep: bool) -> Iterator[Path]:
    """A folder for a fault; it goes at the end, and so does what was mounted in it."""
    folder = bench.folder / name
    try:
        yield folder
    finally:
        if (folder / "run").is_mount():
            subprocess.run(["umount", "-l", str(folder / "run")], check=True)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def scene(name: str, **how: Any) -> Fault:
    return Fault(name, partial(play, scene=Scene(**how)))


def alone(name: str, plan: Plan, *statuses: int, **how: Any) -> Fault:
    """A fault of the one rank that there is."""
    return scene(name, plans={0: plan}, statuses={0: statuses}, **how)
