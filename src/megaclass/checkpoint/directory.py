"""The directory of checkpoints: which ones are complete, how one appears, and which ones go.

Names: ``step-00000100`` is complete; ``.tmp-*`` is being written or deleted and never counts;
``.old-step-00000100`` is a complete one that waits to be replaced by a new one of the same step;
``.damaged-step-00000100`` was found damaged and set aside: it never counts, and is never deleted.
"""

import contextlib
import itertools
import math
import shutil
from pathlib import Path

from megaclass.checkpoint import manifest
from megaclass.checkpoint.manifest import DamagedError
from megaclass.checkpoint.reader import verify
from megaclass.errors import UserError
from megaclass.files import sync_directory


def list_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints in ``root``, by rising step; empty if ``root`` does not exist."""
    found = {step: path for step, path in named(root) if (path / manifest.NAME).is_file()}
    return [found[step] for step in sorted(found)]


def named(root: Path) -> list[tuple[int, Path]]:
    """What has the name of a checkpoint, by rising step. ``.old-`` comes before the new one of its step: it counts only
    while that is missing."""
    paths = sorted(Path(root).glob("*"))
    matches = [(manifest.COMPLETE.fullmatch(path.name), path) for path in paths]
    return sorted((int(match[1]), path) for match, path in matches if match)


def latest(root: Path) -> Path | None:
    """The complete checkpoint of the highest step."""
    complete = list_checkpoints(root)
    return complete[-1] if complete else None


def best(root: Path) -> Path | None:
    """The checkpoint of the highest metric, the later one of equals; None if none has a metric."""
    found, highest = None, -math.inf
    for path in list_checkpoints(root):
        with contextlib.suppress(UserError):  # a damaged one cannot be the best
            metric = manifest.read(path).metric
            if metric is not None and metric >= highest:
                found, highest = path, metric
    return found


def publish(temporary: Path, final: Path) -> None:
    """Give a fully written directory its name, in one step that a kill or a power cut cannot split."""
    if final.exists():  # saved before: directories cannot be swapped portably, so the old one steps aside
        old = final.with_name(f".old-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        final.replace(old)
    temporary.replace(final)
    sync_directory(final.parent)


def tidy(root: Path) -> None:
    """Delete what a killed save or a refused deletion has left."""
    for unfinished in root.glob(".tmp-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def prune(root: Path, *, keep_last: int, keep_every: int, saved: Path) -> None:
    """Delete all but the last ``keep_last`` checkpoints, the first at or after each multiple of ``keep_every`` steps
    (0: none), the best one and the one just ``saved``."""
    complete = list_checkpoints(root)
    keep = {saved, best(root), *complete[-keep_last:]}
    if keep_every:
        of_multiple: dict[int, Path] = {}
        for path in complete:
            of_multiple.setdefault(int(path.name.rpartition("-")[2]) // keep_every, path)
        of_multiple.pop(0, None)
        keep.update(of_multiple.values())
    for path in [*complete, *root.glob(".old-*")]:
        if path not in keep:
            # Renamed first: one that is half deleted must not look complete. One that cannot be deleted
            # costs room on the disk, not the run.
            doomed = root / f".tmp-delete-{path.name}"
            with contextlib.suppress(OSError):
                path.replace(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def usable(root: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint that is as it was written, and the damaged ones after it, each with what is wrong.

    These are set aside: renamed to ``.damaged-step-NNNNNNNN``, the path that is returned. Every byte of the newest one
    is read: ``load(..., verified=True)`` need not read it for its checksum again. One rank calls. UserError, with
    nothing renamed, where that cannot be told: a file that may not be read, or a format of a later release.
    """
    aside: list[tuple[Path, str]] = []
    for _, path in reversed(named(root)):
        try:
            verify(path)
        except DamagedError as damage:
            aside.append((_set_aside(path), damage.reason))
        else:
            return path, aside
    return None, aside


def _set_aside(path: Path) -> Path:
    name = f".damaged-{path.name.removeprefix('.old-')}"
    taken = {found.name for found in path.parent.glob(f"{name}*")}
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    aside = path.with_name(next(name for name in names if name not in taken))
    try:
        return path.replace(aside)
    except OSError as error:
        raise UserError(f"{path} is damaged, and cannot be renamed: {error.strerror}") from None
