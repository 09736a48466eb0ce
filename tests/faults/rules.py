"""What must hold after a fault: each rule is a function that gives the reasons why it does not hold, none at best."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from checkpoint_cases import read_all
from megaclass import checkpoint
from megaclass.config import load_recipe
from megaclass.errors import UserError
from megaclass.results.events import StepEvent, read_events

NOISE = re.compile(
    r"Traceback|\w*Warning: .*\n  |Exception ignored|Fatal Python|terminate called|core dumped|leaked|\[rank\d"
)


@dataclass(frozen=True)
class Ended:
    """How one process ended; ``status`` None: it had to be killed."""

    status: int | None
    out: str
    err: str
    seconds: float  # from the fault to the end, where there was one


def status_is(ended: list[Ended], statuses: tuple[int, ...], first_rank: int = 0) -> Iterator[str]:
    for rank, process in enumerate(ended, first_rank):
        if process.status not in statuses:
            last = (process.err.strip().splitlines() or ["it said nothing"])[-1]
            said = "hung" if process.status is None else f"status {process.status}"
            yield f"rank {rank}: {said} instead of {' or '.join(map(str, statuses))} ({last[:160]})"


def one_line(ended: list[Ended]) -> Iterator[str]:
    """No traceback, no noise of Python or torch: lines of megaclass, and one that says why it ends."""
    for rank, process in enumerate(ended):
        lines = process.err.strip().splitlines()
        if found := NOISE.search(process.err + process.out):
            yield f"rank {rank}: noise: {found[0]!r} ({lines[-1][:160] if lines else ''})"
        elif any(not line.startswith(("megaclass:", "Warning:", "WARNING: ")) for line in lines):
            yield f"rank {rank}: a line of somebody else: {lines[-1][:160]}"
        elif process.status == 2 and sum(line.startswith("megaclass: error") for line in lines) > 1:
            yield f"rank {rank}: {len(lines)} lines"


def told(ended: list[Ended], pattern: str) -> Iterator[str]:
    if not any(re.search(pattern, process.out + process.err) for process in ended):
        yield f"nobody says {pattern!r}"


def saved_where_well(ended: list[Ended], run: Path, step: int) -> Iterator[str]:
    """A status of 0 says that the end is saved."""
    last = checkpoint.latest(run / "checkpoints")
    if all(process.status == 0 for process in ended) and (last is None or last.name != f"step-{step:08d}"):
        yield f"status 0, but the last checkpoint is {last and last.name}"


def soon(ended: list[Ended], seconds: float) -> Iterator[str]:
    slowest = max(process.seconds for process in ended)
    if slowest > seconds:
        yield f"it took {slowest:.1f} s, {seconds:g} s are allowed"


def intact(run: Path, least: int) -> Iterator[str]:
    """Every checkpoint verifies, the newest is of step ``least`` or later; settings and log can be read."""
    newest = 0
    for path in checkpoint.list_checkpoints(run / "checkpoints"):
        try:
            newest = read_all(path)["step"]
        except UserError as error:
            yield f"{path.name} is damaged: {error}"[:300]
    if newest < least:
        yield f"the newest checkpoint is of step {newest}, not of {least} or later"
    if newest or (run / "config.toml").exists():
        yield from _reads(lambda: load_recipe(str(run / "config.toml"), stored=True))
    if (run / "events.jsonl").exists():
        yield from _reads(lambda: read_events(run / "events.jsonl"))


def _reads(read) -> Iterator[str]:
    try:
        read()
    except UserError as error:
        yield str(error)[:300]


def same_bits(run: Path, other: Path) -> Iterator[str]:
    """All tensors of the last checkpoint are those of the other run's, bit for bit."""
    ends = [checkpoint.latest(each / "checkpoints") for each in (run, other)]
    if None in ends or ends[0].name != ends[1].name:
        yield f"the last checkpoint is {ends[0] and ends[0].name}, not {ends[1] and ends[1].name}"
        return
    sums = [{f.name: zlib.crc32(f.read_bytes()) for f in end.glob("*.safetensors")} for end in ends]
    if sums[0] != sums[1]:
        yield "the end differs from that of the uninterrupted run"


def same_losses(run: Path, other: Path, tolerance: float) -> Iterator[str]:
    """Every loss that is told is that of the other run."""
    told, expected = (
        {e.step: e.loss for e in read_events(each / "events.jsonl") if isinstance(e, StepEvent)}
        for each in (run, other)
    )
    for step, loss in told.items():
        if abs(loss - expected[step]) > tolerance * max(1.0, abs(expected[step])):
            yield f"the loss of step {step} is {loss!r}, not {expected[step]!r}"
            return


def samples(folder: Path) -> dict[int, list[int]]:
    """Of each step the checksums of its images, over all ranks, as the last attempt that took the step saw them."""
    found: dict[int, list[int]] = {}
    for attempt in range(1, 4):
        mine: dict[int, list[int]] = {}
        for rank in range(4):
            for step, sums in _steps(folder, attempt, rank):
                mine[step] = mine.get(step, []) + sums
        found |= mine
    return found


def _steps(folder: Path, attempt: int, rank: int) -> list:
    path = folder / f"{attempt}-{rank}.steps"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def same_samples(folder: Path, other: Path) -> Iterator[str]:
    seen, expected = samples(folder), samples(other)
    if seen != expected:
        differing = sorted(step for step in expected if seen.get(step) != expected[step])
        yield f"other samples at the steps {differing or sorted(seen)}"


def trained(folder: Path, attempt: int) -> list[int]:
    """The steps that an attempt has finished on some rank."""
    return sorted({step for rank in range(4) for step, _ in _steps(folder, attempt, rank)})


def struck_after(folder: Path, attempt: int) -> int | None:
    """After how many steps the fault of an attempt struck; None: it has not."""
    found = [path.read_text().split() for path in folder.glob(f"{attempt}-*.struck")]
    return next((int(steps[0]) for steps in found if steps), None)


def lost(folder: Path, attempt: int, had: int | None = None) -> int:
    """How many steps an attempt trained again, of those before it, or of ``had``; 0 where it trained none."""
    before, after = trained(folder, attempt - 1), trained(folder, attempt)
    if not before or not after:
        return 0
    return max(0, (before[-1] if had is None else had) - (after[0] - 1))


def nothing_left(run: Path, other: Path) -> Iterator[str]:
    """No file that the uninterrupted run has not, but what a fallback has set aside."""

    def names(root: Path) -> set[str]:
        return {re.sub(r"\d+", "N", p.relative_to(root).as_posix()) for p in root.rglob("*")}

    extra = sorted(name for name in names(run) - names(other) if "damaged" not in name)
    if extra:
        yield f"left over: {', '.join(extra[:4])}"
    missing = sorted(names(other) - names(run))
    if missing:
        yield f"missing: {', '.join(missing[:4])}"
