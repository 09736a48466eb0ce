"""The directory of checkpoints: which ones are complete, how one appears, and which ones go.

Names: ``step-00000100`` is complete; ``.tmp-*`` is being written or deleted and never counts;
``.old-step-00000100`` is a complete one that waits to be replaced by a new one of the same step.
"""

import contextlib
import math
import os
import re
import shutil
from pathlib import Path

from megaclass.checkpoint import manifest
from megaclass.errors import UserError

_COMPLETE = re.compile(r"(?:\.old-)?step-(\d{8,18})")


def list_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints in ``root``, by rising step; empty if ``root`` does not exist."""
    found: dict[int, Path] = {}
    # ".old-" sorts before "step-": it counts only while the new one of that step is missing.
    for path in sorted(Path(root).glob("*")):
        match = _COMPLETE.fullmatch(path.name)
        if match and (path / manifest.NAME).is_file():
            found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


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


def prune(root: Path, *, keep_last: int, saved: Path) -> None:
    """Delete all but the last ``keep_last`` checkpoints, the best one and the one just ``saved``."""
    complete = list_checkpoints(root)
    keep = {saved, best(root), *complete[-keep_last:]}
    for path in [*complete, *root.glob(".old-*")]:
        if path not in keep:
            # Renamed first: one that is half deleted must not look complete. One that cannot be deleted
            # costs room on the disk, not the run.
            doomed = root / f".tmp-delete-{path.name}"
            with contextlib.suppress(OSError):
                path.replace(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk: a new name survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
