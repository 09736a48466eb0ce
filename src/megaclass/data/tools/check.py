"""Every image of a data set looked at: what training would trip over, and what it would learn wrongly.

Shapes: N = images.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megaclass.data.dataset import DamagedSampleError, Dataset, class_names
from megaclass.data.decode import decode
from megaclass.data.open import open_dataset, record_file, split_paths
from megaclass.data.records import recordio
from megaclass.data.records.recordfile import RecordFile, read_index
from megaclass.data.threads import in_order, one_silent_thread
from megaclass.errors import UserError

# What a check can find, in the order in which it is told.
KINDS = {
    "damaged": "images that cannot be read or decoded",
    "label": "labels that are no class of the set",
    "index": "records that the index leaves out",
    "identity": "labels that are others than the identity records say",
    "mislabelled": "the same image under another label",
    "duplicate": "the same image again in its class",
}
# Enough that handing out work costs nothing, few enough that the bar moves.
_PIECE_IMAGES = 64


class Finding(NamedTuple):
    """One thing that is wrong: its kind (of ``KINDS``), the file and the record in it, and why."""

    kind: str
    where: str
    reason: str


def check(
    path: str | Path,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, list[Finding]]:
    """Decode every image of the set under ``path`` (or of several, see ``open_dataset``).

    ``workers``: threads; 0: one a core. ``progress``: called with (images done, images in all).

    Returns how many images there are, and what was found, in the order of the images; what shows only when all was
    read comes last. Classes of several sets are different classes: an image that is in two sets is told as
    mislabelled. Memory: about 40 bytes an image, and what the threads decode. Raises UserError for a set that does
    not open.
    """
    dataset, found, done = open_dataset(path), list[Finding](), 0
    class_names(dataset)  # a classes.txt that does not fit is an error
    labels_N = np.full(len(dataset), -1)
    hashes_N2 = np.zeros((len(dataset), 2), np.uint64)  # two images share one only if their bytes are the same

    def look(index: int) -> Finding | None:
        where = dataset.describe(index)
        try:
            encoded, labels_N[index] = dataset.read(index)
            hashes_N2[index] = np.frombuffer(hashlib.sha256(encoded).digest(), np.uint64)[:2]
            decode(encoded, where)
        except UserError as error:
            kind = "damaged" if isinstance(error, DamagedSampleError) else "label"
            return Finding(kind, where, str(error).removeprefix(where).lstrip(": "))
        return None

    with one_silent_thread():
        images = range(len(dataset))
        pieces = (images[start : start + _PIECE_IMAGES] for start in images[::_PIECE_IMAGES])
        for looks in in_order(lambda numbers: [look(number) for number in numbers], pieces, workers):
            found += filter(None, looks)
            done += len(looks)
            progress(done, len(dataset))
    for part in split_paths(path):
        if rec := record_file(part):
            found += _left_out(rec)
    found += _other_labels(dataset, labels_N)
    found += _twice(dataset, labels_N, hashes_N2)
    return len(dataset), found


def _left_out(rec: Path) -> Iterator[Finding]:
    index = rec.with_suffix(".idx")
    if index.exists():
        unnamed = np.setdiff1d(recordio.find_records(RecordFile(rec).words_W), read_index(index).offsets_N)
        if len(unnamed):
            reason = f"{len(unnamed):,} records that {index.name} does not name, the first at byte {unnamed[0]}"
            yield Finding("index", str(rec), reason)


def _other_labels(dataset: Dataset, labels_N: np.ndarray) -> Iterator[Finding]:
    """Where evaluation, which takes labels from the identity records, would see others than training."""
    try:
        stated_N = dataset.labels()
    except UserError:
        return  # one is lost: told already
    for index in np.flatnonzero((labels_N != stated_N) & (labels_N >= 0)).tolist():
        reason = f"the label is {labels_N[index]}, but {stated_N[index]} in the identity records"
        yield Finding("identity", dataset.describe(index), reason)


def _twice(dataset: Dataset, labels_N: np.ndarray, hashes_N2: np.ndarray) -> Iterator[Finding]:
    for first, other in duplicates(hashes_N2):
        label, other_label, where = int(labels_N[first]), int(labels_N[other]), dataset.describe(first)
        if label == other_label:
            yield Finding("duplicate", dataset.describe(other), f"the same image as {where}")
        else:
            reason = f"the label is {other_label}, but that of the same image in {where} is {label}"
            yield Finding("mislabelled", dataset.describe(other), reason)


def duplicates(hashes_N2: np.ndarray) -> list[tuple[int, int]]:
    """(first, other) for every image that was there before, by the number of the first one; zeros are no hash."""
    images_N = np.flatnonzero(hashes_N2.any(1))
    order_N = images_N[np.lexsort(hashes_N2[images_N].T)]  # stable
    same_N = np.zeros(len(order_N), bool)
    same_N[1:] = (hashes_N2[order_N[1:]] == hashes_N2[order_N[:-1]]).all(1)
    first_N = np.maximum.accumulate(np.where(same_N, 0, np.arange(len(order_N))))
    return sorted(zip(order_N[first_N][same_N].tolist(), order_N[same_N].tolist(), strict=True))
