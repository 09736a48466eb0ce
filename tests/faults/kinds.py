"""The kinds of faults, in the order of the page."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from faults import hostile
from faults import one_rank as one
from faults import several_ranks as several
from faults.bench import EVERY, Bench
from faults.scenes import Fault


@dataclass(frozen=True)
class Kind:
    name: str
    most_lost: int | None  # steps; None: no bound is promised
    must: str  # what must hold besides, for the page
    faults: Callable[[Bench, random.Random], Iterator[Fault]]


BACK = "a resume ends with the bits of an uninterrupted run"
HOSTILE = Kind("hostile and absurd input", 0, "used, or refused in one line, within 20 s and 500 MB", hostile.cases)
KINDS = [
    Kind("SIGKILL at any moment", EVERY, BACK, one.kills),
    Kind("SIGKILL at each call of a save", EVERY, BACK, one.kills_in_saves),
    Kind("SIGKILL while a slow save runs beside the training", 2 * EVERY,
         "what was being saved is lost too; " + BACK, one.kills_beside),
    Kind("TERM, USR1, HUP or INT, also in saves on a slow disk", 0, "status 75 (INT: 130); " + BACK, one.signals),
    Kind("a second signal", 2 * EVERY, "the process ends within 2 s", one.second_signals),
    Kind("a refused call, each call of a run", EVERY, "training goes on and says why, or a line does", one.refused),
    Kind("a refused call, each call of a resume", EVERY, "the same", one.refused_to_resumes),
    Kind("a disk that is full for an interval", EVERY, "the same", one.full_disks),
    Kind("a disk or a limit that is too small", None, "the reason is told; then " + BACK, one.small_disks),
    Kind("a damaged newest checkpoint", EVERY, "it is named, the one before is used", one.damaged_checkpoints),
    Kind("a damaged events.jsonl", EVERY, "the run goes on; " + BACK, one.damaged_logs),
    Kind("a damaged config.toml", EVERY, "one line, or the run goes on", one.damaged_settings),
    Kind("signals to two ranks", 0, "all end at the same step, with 75 (INT: 130)", several.signals_of_ranks),
    Kind("one of two ranks killed", EVERY, "the other one ends with 75 and one line", several.killed_ranks),
    Kind("one of two ranks stopped", EVERY, "the same, after `run.heartbeat_s`", several.stopped_ranks),
    Kind("two ranks under torchrun", EVERY, "a restart goes on; without one a resume does", several.torchrun),
    Kind("killed on N ranks, resumed on M", EVERY, "equal order of samples, losses to 1e-5", several.other_ranks),
    Kind("ranks that disagree", 0, "status 2 on all, setting and values named, no file written", several.disagreements),
    HOSTILE,
]  # fmt: skip
