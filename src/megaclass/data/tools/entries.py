"""The images of a set one by one, as far as they can be had: a check goes on where training would stop.

Shapes: N = entries (records or files), I = identity records.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megaclass.data.dataset import DamagedSampleError, Dataset, class_names
from megaclass.data.folder import FolderDataset
from megaclass.data.open import record_file
from megaclass.data.records import recordio
from megaclass.data.records.reader import MAX_EXACT, RecordDataset
from megaclass.data.records.recordfile import Index, RecordFile, read_index, rounding, scan
from megaclass.data.records.recordio import DamageError
from megaclass.errors import UserError

# What a check can find, in the order in which it is told.
KINDS = {
    "set": "the set as a whole",
    "damaged": "images that cannot be read or decoded",
    "label": "labels that are no class of the set",
    "index": "index lines and records that disagree",
    "identity": "identity records that disagree with the labels",
    "mislabelled": "the same image under another label",
    "duplicate": "the same image again in its class",
}


class Finding(NamedTuple):
    """One thing that is wrong: its kind (of ``KINDS``), the file, the key if that holds many records, and why."""

    kind: str
    file: str
    record: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.record is None else f' record {self.record}'}: {self.reason}"


class Entries:
    """The files of an image folder. ``read`` and ``place`` are called from several threads at once."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.num_classes: int | None = dataset.num_classes  # None: nobody knows

    def __len__(self) -> int:
        return len(self._dataset)

    def place(self, index: int) -> tuple[str, int | None]:
        """File and key of an entry."""
        return self._dataset.describe(index), None

    def read(self, index: int) -> tuple[bytes, float] | None:
        """Image and label of an entry, or None if it should hold no image. Raises DamageError."""
        try:
            return self._dataset.read(index)
        except DamagedSampleError as error:
            raise DamageError(reason_of(error, self._dataset.describe(index))) from None

    def conclude(self, labels_N: np.ndarray) -> Iterator[Finding]:
        """What shows once every entry was read. ``labels_N``: int64, -1 for those without a sound one."""
        return iter(())


class RecordEntries(Entries):
    """All records that the index names (or a scan finds, without one), in the order in which they lie.

    The set need not open as a whole: what keeps it from that is reported, and its records are read all the
    same. Memory: 17 bytes a record.
    """

    def __init__(self, path: Path, report: Callable[[Finding], None]) -> None:
        self.num_classes = None
        self._path = record_file(path) or path
        refused: UserError | None = None
        try:
            dataset = RecordDataset(path)
            self.num_classes = dataset.num_classes
            class_names(dataset)
        except UserError as error:
            if not self._path.is_file():
                raise
            refused = error
            report(Finding("set", str(self._path), None, reason_of(error, str(self._path))))
        self._file = RecordFile(self._path)
        index = self._index(report)
        if len(index) == 0:
            raise refused or UserError(f"{self._path} holds no records; pack or copy the set again")
        order = np.argsort(index.offsets_N, kind="stable")
        self._keys_N, self._offsets_N = index.keys_N[order], index.offsets_N[order]
        self._identity_N = np.zeros(len(index), bool)  # noted as they are read
        self._zero_offset, self._first_identity = -1, 0
        zero, stated = index.find(0), index.index_range(self._file)
        if zero is not None and stated is not None:
            self._zero_offset = int(index.offsets_N[zero])
            self._first_identity = stated[0] - rounding(stated[0])

    def __len__(self) -> int:
        return len(self._offsets_N)

    def place(self, index: int) -> tuple[str, int | None]:
        return str(self._path), int(self._keys_N[index])

    def read(self, index: int) -> tuple[bytes, float] | None:
        offset = int(self._offsets_N[index])
        if offset == self._zero_offset:
            return None
        labels, image = recordio.unpack_payload(self._file.payload(offset))
        if len(image):
            return bytes(image), labels[0]
        is_range = len(labels) == 2 and all(0 <= label < 2**31 for label in labels)
        if not is_range or self._keys_N[index] < self._first_identity:
            raise DamageError("there is no image in it")
        self._identity_N[index] = True
        return None

    def conclude(self, labels_N: np.ndarray) -> Iterator[Finding]:
        yield from self._index_findings()
        identities = np.flatnonzero(self._identity_N)
        _, first_I, last_I = recordio.peek(self._file.words_W, self._offsets_N[identities])
        image_N = (self._offsets_N != self._zero_offset) & ~self._identity_N
        keys_N, labels_N = self._keys_N[image_N], labels_N[image_N]
        order = np.argsort(keys_N, kind="stable")
        bounds_I2 = np.stack([first_I, last_I], 1).astype(np.int64)
        for number, reason in disagreements(bounds_I2, keys_N[order], labels_N[order]):
            yield Finding("identity", *self.place(int(identities[number])), reason)

    def _index(self, report: Callable[[Finding], None]) -> Index:
        path = self._path.with_suffix(".idx")
        if path.exists():
            try:
                index = read_index(path)
                if len(index):
                    return index
            except UserError as error:
                report(Finding("index", str(path), None, reason_of(error, str(path))))
        return scan(self._file)

    def _index_findings(self) -> Iterator[Finding]:
        for key in Index(self._keys_N, self._offsets_N).double_keys().tolist():
            yield Finding("index", str(self._path), key, "more than one index line has this key")
        for index in np.flatnonzero(self._offsets_N[1:] == self._offsets_N[:-1]).tolist():
            text = f"the index line of record {self._keys_N[index + 1]} points at this one too"
            yield Finding("index", *self.place(index), text)
        unnamed = np.setdiff1d(recordio.find_records(self._file.words_W), self._offsets_N)
        if len(unnamed):
            text = f"{len(unnamed):,} records that no index line names, the first at byte {unnamed[0]}"
            yield Finding("index", str(self._path), None, text)


def open_entries(path: Path, report: Callable[[Finding], None]) -> Entries:
    """The entries of the set under ``path``. Raises UserError where there is nothing to check."""
    return Entries(FolderDataset(path)) if record_file(path) is None else RecordEntries(path, report)


def disagreements(
    bounds_I2: np.ndarray, keys_N: np.ndarray, labels_N: np.ndarray
) -> Iterator[tuple[int, str]]:
    """(number of the identity record, what is wrong) for each that disagrees with the images.

    ``bounds_I2``: the first key and one past the last of each identity's images; ``keys_N``: of all images,
    ascending; ``labels_N``: theirs, -1 where it is unknown. (A label may have several identities: some public sets
    do.) Keys from 2**24 on are not looked at: as float32 has it, the bounds are rounded there.
    """
    if len(bounds_I2) == 0 or len(keys_N) == 0 or int(keys_N[-1]) >= MAX_EXACT:
        return
    low, stop = int(keys_N[0]), int(keys_N[-1]) + 1
    places_I2 = np.searchsorted(keys_N, bounds_I2)
    expected, number = low, 0
    for number in np.argsort(bounds_I2[:, 0], kind="stable").tolist():
        first, last = bounds_I2[number].tolist()
        if not low <= first <= last <= stop:
            yield number, f"states the keys {first} to {last - 1}, images have {low} to {stop - 1}"
            continue
        if first != expected:
            yield (
                number,
                f"its images begin at key {first}, those of the identity before end at {expected - 1}",
            )
        expected = last
        labels = np.unique(labels_N[slice(*places_I2[number])])
        if len(labels := labels[labels >= 0]) > 1:
            yield number, f"its images have the labels {labels[0]} and {labels[1]}"
    if expected < stop:
        yield number, f"behind its images, the keys {expected} to {stop - 1} belong to no identity"


def reason_of(error: Exception, where: str) -> str:
    """The message of ``error`` without the place at its beginning."""
    return str(error).removeprefix(where).lstrip(": ")
