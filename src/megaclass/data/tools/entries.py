"""The images of a set one by one, as far as they can be had: a check goes on where training would stop.

Shapes: N = entries (records or files), I = identity records.
"""

import array
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from megaclass.data.dataset import DamagedSampleError, Dataset, class_names
from megaclass.data.folder import FolderDataset
from megaclass.data.open import record_file
from megaclass.data.records import recordio
from megaclass.data.records.index import Index, read_index
from megaclass.data.records.reader import MAX_EXACT, RecordDataset, index_range, scan
from megaclass.data.records.recordfile import RecordFile
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


class Place(NamedTuple):
    """Where something lies: a file, and the key of the record if the file holds many."""

    file: str
    record: int | None = None

    def __str__(self) -> str:
        return self.file if self.record is None else f"{self.file} record {self.record}"


class Finding(NamedTuple):
    """One thing that is wrong: its kind (of ``KINDS``), where, and why."""

    kind: str
    place: Place
    reason: str

    def row(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {"kind": self.kind, **self.place._asdict(), "reason": self.reason}

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class Entry(NamedTuple):
    """An image as it is stored, and its label, which need not be a whole number."""

    encoded: bytes
    label: float


class Entries(Protocol):
    """``read`` and ``place`` are called from several threads at once."""

    num_classes: int | None  # None: nobody knows

    def __len__(self) -> int: ...

    def place(self, index: int) -> Place: ...

    def read(self, index: int) -> Entry | None:
        """Entry ``index``, or None if it holds no image. Raises DamageError."""
        ...

    def conclude(self, labels_N: np.ndarray) -> Iterator[Finding]:
        """What shows once every entry was read. ``labels_N``: int64, -1 for those without a sound one."""
        ...


def open_entries(path: Path, report: Callable[[Finding], None]) -> Entries:
    """The entries of the set under ``path``. Raises UserError where there is nothing to check."""
    return FileEntries(FolderDataset(path)) if record_file(path) is None else RecordEntries(path, report)


class FileEntries:
    """The files of an image folder."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.num_classes: int | None = dataset.num_classes

    def __len__(self) -> int:
        return len(self._dataset)

    def place(self, index: int) -> Place:
        return Place(self._dataset.describe(index))

    def read(self, index: int) -> Entry | None:
        try:
            return Entry(*self._dataset.read(index))
        except DamagedSampleError as error:
            raise DamageError(reason_of(error, str(self.place(index)))) from None

    def conclude(self, labels_N: np.ndarray) -> Iterator[Finding]:
        return iter(())


class RecordEntries:
    """All records that the index names (or a scan finds, without one), in the order in which they lie.

    The set need not open as a whole: what keeps it from that is reported, and its records are read all the
    same. Memory: 16 bytes a record.
    """

    def __init__(self, path: Path, report: Callable[[Finding], None]) -> None:
        self.num_classes: int | None = None
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
            report(Finding("set", Place(str(self._path)), reason_of(error, str(self._path))))
        self._file = RecordFile(self._path)
        index = self._index(report)
        if len(index) == 0:
            raise refused or UserError(f"{self._path} holds no records; pack or copy the set again")
        zero = index.find(0)
        # Some converters put a picture into the index record.
        stated = None if zero is None else index_range(self._file, index.offsets_N[zero], pictured=len(index))
        self._first_identity = stated and stated[0]
        self._zero_offset = None if zero is None or stated is None else int(index.offsets_N[zero])
        order = np.argsort(index.offsets_N, kind="stable")
        self._keys_N, self._offsets_N = index.keys_N[order], index.offsets_N[order]
        # Index, first key, one past the last; and so on.
        self._identities: array.array[int] = array.array("q")
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._offsets_N)

    def place(self, index: int) -> Place:
        return Place(str(self._path), int(self._keys_N[index]))

    def read(self, index: int) -> Entry | None:
        offset = int(self._offsets_N[index])
        following = self._file.size if index + 1 == len(self) else int(self._offsets_N[index + 1])
        if offset == self._zero_offset:
            return None
        if plain := self._file.plain(offset, following - offset):
            label, encoded = plain
            return Entry(encoded, label)
        labels, image = recordio.unpack_payload(self._file.payload(offset))
        if len(image):
            return Entry(bytes(image), labels[0])
        if not self._is_identity(index, labels):
            raise DamageError("there is no image in it")
        return None

    def conclude(self, labels_N: np.ndarray) -> Iterator[Finding]:
        yield from self._index_findings()
        if not self._identities:
            return
        identities = np.array(self._identities, np.int64).reshape(-1, 3)
        identities = identities[np.argsort(identities[:, 0])]
        image_N = self._offsets_N != self._zero_offset
        image_N[identities[:, 0]] = False
        keys_N, labels_N = self._keys_N[image_N], labels_N[image_N]
        order = np.argsort(keys_N, kind="stable")
        for number, reason in disagreements(identities[:, 1:], keys_N[order], labels_N[order]):
            yield Finding("identity", self.place(int(identities[number, 0])), reason)

    def _index(self, report: Callable[[Finding], None]) -> Index:
        path = self._path.with_suffix(".idx")
        if path.exists():
            try:
                index = read_index(path)
                if len(index):
                    return index
            except UserError as error:
                report(Finding("index", Place(str(path)), reason_of(error, str(path))))
        return scan(self._file)

    def _index_findings(self) -> Iterator[Finding]:
        for key in Index(self._keys_N, self._offsets_N).double_keys().tolist():
            yield Finding("index", Place(str(self._path), key), "more than one index line has this key")
        for index in np.flatnonzero(self._offsets_N[1:] == self._offsets_N[:-1]).tolist():
            key = self._keys_N[index + 1]
            yield Finding(
                "index", self.place(index), f"the index line of record {key} points at this one too"
            )
        unnamed = np.setdiff1d(recordio.find_records(self._file.words_W), self._offsets_N)
        if len(unnamed):
            text = f"{len(unnamed):,} records that no index line names, the first at byte {unnamed[0]}"
            yield Finding("index", Place(str(self._path)), text)

    def _is_identity(self, index: int, labels: tuple[float, ...]) -> bool:
        """Whether a record without an image may be so. Identity records are noted for ``conclude``."""
        key, first = int(self._keys_N[index]), self._first_identity
        if len(labels) < 2 or not all(0 <= label < 2**31 for label in labels):
            return False
        if first is not None and key < first - int(np.spacing(np.float32(first))):
            return False
        with self._lock:
            self._identities.extend((index, int(labels[0]), int(labels[1])))
        return True


def disagreements(
    bounds_I2: np.ndarray, keys_N: np.ndarray, labels_N: np.ndarray
) -> Iterator[tuple[int, str]]:
    """(number of the identity record, what is wrong) for each that disagrees with the images.

    ``bounds_I2``: the first key and one past the last of each identity's images; ``keys_N``: of all images,
    ascending; ``labels_N``: theirs, -1 where it is unknown. (A label may have several identities: some public sets
    do.) Keys from 2**24 on are not looked at: as float32 has it, the bounds are rounded there.
    """
    if len(keys_N) == 0 or int(keys_N[-1]) >= MAX_EXACT:
        return
    low, stop = int(keys_N[0]), int(keys_N[-1]) + 1
    known_N = labels_N >= 0
    known_keys_N, known_labels_N = keys_N[known_N], labels_N[known_N]
    places_I2 = np.searchsorted(known_keys_N, bounds_I2)
    expected, number = low, 0
    for number in np.argsort(bounds_I2[:, 0], kind="stable").tolist():
        first, last = bounds_I2[number].tolist()
        if not low <= first <= last <= stop:
            yield number, f"states the keys {first} to {last - 1}, images have {low} to {stop - 1}"
            continue
        if first != expected:
            one, other = sorted((first, expected))
            whose = "no identity" if expected < first else "two identities"
            yield number, f"before its images, the keys {one} to {other - 1} belong to {whose}"
        expected = last
        begin, end = places_I2[number].tolist()
        labels = known_labels_N[begin:end]
        if len(labels) and (other := int(np.argmax(labels != labels[0]))):
            one, other = begin, begin + other
            yield (
                number,
                f"of its images, record {known_keys_N[one]} has the label {labels[0]}, record {known_keys_N[other]} "
                f"the label {known_labels_N[other]}",
            )
    if expected < stop:
        yield number, f"behind its images, the keys {expected} to {stop - 1} belong to no identity"


def reason_of(error: Exception, where: str) -> str:
    """The message of ``error`` without the place at its beginning."""
    return str(error).removeprefix(where).lstrip(": ")
