"""Every image of a data set looked at: what training would trip over, and what it would learn wrongly.

Shapes: N = entries of all sets.
"""

import hashlib
import itertools
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.decode import decode
from megaclass.data.open import check_paths, split_paths
from megaclass.data.records.recordio import DamageError
from megaclass.data.threads import in_order, one_silent_thread, ranges
from megaclass.data.tools.entries import Entries, Finding, open_entries, reason_of
from megaclass.errors import UserError

# Enough that handing out work costs nothing, few enough that the bar moves.
_PIECE_IMAGES = 64
_HASH = np.dtype(
    [("high", "<u8"), ("low", "<u8")]
)  # 128 bits that two images share only if their bytes are the same


@dataclass
class CheckSummary:
    """What was looked at, and how many findings of each kind there were."""

    images: int = 0  # what should be one: index and identity records are none
    decoded: int = 0
    encoded_bytes: int = 0
    seconds: float = 0.0
    found: Counter[str] = field(default_factory=Counter)


def check(
    path: str | Path,
    report: Callable[[Finding], None],
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckSummary:
    """Decode every image of the set under ``path`` (or of several, see ``open_dataset``).

    - ``report``: called in this thread with each finding (see ``entries.KINDS``), in the order of the files;
      what shows only when all was read comes last.
    - ``workers``: threads; 0: one a core.
    - ``progress``: called with (entries done, entries in all).

    Classes of several sets are different classes: an image that is in two sets is told as mislabelled. Memory:
    about 60 bytes a record, and what the threads decode. Raises UserError where there is no set to check.
    """
    started = time.perf_counter()
    summary = CheckSummary()

    def tell(finding: Finding) -> None:
        summary.found[finding.kind] += 1
        report(finding)

    paths = split_paths(path)
    check_paths(paths)
    work = _Work([open_entries(part, tell) for part in paths])
    done = 0
    with one_silent_thread():
        for looks in in_order(work, ranges(work.count, _PIECE_IMAGES), workers):
            for look in looks:
                for finding in look.findings:
                    tell(finding)
                summary.images += look.is_image
                summary.decoded += look.decoded
                summary.encoded_bytes += look.encoded_bytes
            done += len(looks)
            progress(done, work.count)
    for finding in work.conclude():
        tell(finding)
    summary.seconds = time.perf_counter() - started
    return summary


@dataclass
class _Look:
    """What was seen of an entry."""

    is_image: bool = True
    decoded: bool = False
    encoded_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


class _Work:
    """Looks at a range of entries, in any thread, and keeps the few bytes of each that are needed at the end."""

    def __init__(self, parts: list[Entries]) -> None:
        self.parts = parts
        self.starts = [0, *itertools.accumulate(map(len, parts))]
        self.count = self.starts[-1]
        self.hashes_N = np.zeros(self.count, _HASH)
        self.known_N = np.zeros(self.count, bool)  # which have a hash
        self.labels_N = np.full(self.count, -1, np.int64)  # within the part

    def __call__(self, numbers: range) -> list[_Look]:
        return [self._look(number) for number in numbers]

    def _look(self, number: int) -> _Look:
        part, index = self._entry(number)
        place, look = part.place(index), _Look()
        try:
            entry = part.read(index)
            if entry is None:
                return _Look(is_image=False)
            encoded, label = entry
            look.encoded_bytes = len(encoded)
            if wrong := _label_fault(label, part.num_classes):
                look.findings.append(Finding("label", *place, wrong))
            else:
                self.labels_N[number] = int(label)
            digest = hashlib.sha256(encoded).digest()[: _HASH.itemsize]
            self.hashes_N[number], self.known_N[number] = np.frombuffer(digest, _HASH)[0], True
            decode(encoded, "")
            look.decoded = True
        except (DamageError, DamagedSampleError) as error:
            look.findings.append(Finding("damaged", *place, reason_of(error, "")))
        except UserError as error:
            look.findings.append(Finding("set", *place, reason_of(error, place[0])))
        return look

    def _entry(self, number: int) -> tuple[Entries, int]:
        part = bisect_right(self.starts, number) - 1
        return self.parts[part], number - self.starts[part]

    def conclude(self) -> Iterator[Finding]:
        for part, (start, stop) in zip(self.parts, itertools.pairwise(self.starts), strict=True):
            yield from part.conclude(self.labels_N[start:stop])
        for first, other in duplicates(self.hashes_N, self.known_N):
            (one, at), (two, there) = self._entry(first), self._entry(other)
            label, other_label = int(self.labels_N[first]), int(self.labels_N[other])
            file, record = one.place(at)
            where = file if record is None else f"{file} record {record}"
            kind = "mislabelled"
            if one is not two:
                text = f"the same image as {where} of another set: it would be in two classes"
            elif label == other_label:
                kind, text = "duplicate", f"the same image as {where}"
            else:
                text = f"the label is {other_label}, but that of the same image in {where} is {label}"
            yield Finding(kind, *two.place(there), text)


def _label_fault(label: float, num_classes: int | None) -> str:
    if not float(label).is_integer() or label < 0:
        return f"the label {label:g} is no whole number from 0 on"
    if num_classes is not None and label >= num_classes:
        return f"the label {int(label)} is outside 0..{num_classes - 1}"
    return ""


def duplicates(hashes_N: np.ndarray, known_N: np.ndarray) -> list[tuple[int, int]]:
    """(first, other) for every image that was there before, by the number of the first one.

    ``known_N`` says for which images there is a hash.
    """
    images_N = np.flatnonzero(known_N)
    order_N = images_N[np.lexsort((hashes_N["low"][images_N], hashes_N["high"][images_N]))]  # stable
    same_N = np.zeros(len(order_N), bool)
    same_N[1:] = hashes_N[order_N[1:]] == hashes_N[order_N[:-1]]
    first_N = np.maximum.accumulate(np.where(same_N, 0, np.arange(len(order_N))))
    return sorted(zip(order_N[first_N][same_N].tolist(), order_N[same_N].tolist(), strict=True))
