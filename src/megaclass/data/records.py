"""Record sets: the ``.rec`` and ``.idx`` files in which images come, as the public face sets lay them out.

The ``.idx`` has a line ``key<TAB>offset`` for each record of the ``.rec``. The public face sets keep, under
key 0, an index record without an image whose two labels (a, b) say that images have the keys 1..a-1 and
identities the keys a..b-1; an identity record's labels are the first and one past the last key of its images.
Their ``property`` file is one line: ``classes,height,width``. im2rec's files have images under every key.
"""

import array
import functools
import itertools
import logging
import math
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from megaclass.data import recordio
from megaclass.data.dataset import Sample
from megaclass.data.recordio import DamageError
from megaclass.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Labels and keys inside payloads are float32: whole numbers beyond this one are rounded.
MAX_EXACT = 1 << 24
MAX_SKIPS_IN_A_ROW = 100
_CHUNK_RECORDS = 1 << 16


class RecordDataset:
    """The images of a RecordIO file.

    ``root`` is a directory with ``train.rec`` (and ``train.idx``, ``property``) or the path of a ``.rec``
    file. A damaged record is a UserError with ``on_error="fail"``; with ``"skip"`` it is named in the log,
    counted in ``skipped``, and the next sound record stands in for it.

    Memory: 8 bytes a record (16 if the keys have gaps), and 8 more once ``labels`` was called.
    """

    def __init__(self, root: str | Path, on_error: Literal["fail", "skip"] = "fail") -> None:
        if on_error not in ("fail", "skip"):
            raise UserError(f"on_error: {on_error!r} is not known; use fail or skip")
        self.path = _find_rec(Path(root))
        self._on_error = on_error
        self._damaged: set[int] = set()
        self._labels: np.ndarray | None = None
        self._identity_offsets = np.empty(0, np.int64)
        self._keys: np.ndarray | range
        self._offsets: np.ndarray
        size = self.path.stat().st_size
        if size < recordio.PART.size + recordio.HEADER.size:
            raise UserError(f"{self.path} has {size} bytes, too few for a record; copy or pack the set again")
        # Every record at first; what is no image leaves below.
        self._keys, self._offsets = self._read_index()
        if on_error == "fail":
            # A file cut short, or an index of another file, shows at the ends: better now than in an hour.
            for index in (int(self._offsets.argmin()), int(self._offsets.argmax())):
                self._checked(index, self._payload)
        self._select_images()
        if len(self) == 0:
            raise UserError(f"{self.path} holds no images; pack it again")
        self.num_classes = MAX_EXACT
        self.num_classes = (
            _read_property(self.path) or len(self._identity_offsets) or int(self.labels().max()) + 1
        )

    def __len__(self) -> int:
        return len(self._offsets)

    def __getstate__(self) -> dict[str, Any]:
        # The map stays behind: whoever unpickles opens the file anew.
        return {name: value for name, value in vars(self).items() if name not in ("_bytes", "_words")}

    @property
    def skipped(self) -> int:
        """How many damaged records were met so far (with ``on_error="skip"``)."""
        return len(self._damaged)

    def describe(self, index: int) -> str:
        return f"{self.path} record {self._keys[index]} (offset {self._offsets[index]})"

    def read(self, index: int) -> Sample:
        """Return sample ``index``, with the first of its labels. Safe to call from several threads."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        for step in range(min(MAX_SKIPS_IN_A_ROW, len(self))):
            sample = self._checked((index + step) % len(self), self._sample)
            if sample is not None:
                return sample
        raise UserError(
            f"{self.describe(index)} and the records after it are damaged; copy the set again, or remove "
            f"{self.path.with_suffix('.idx').name} if it belongs to another file"
        )

    def labels(self) -> np.ndarray:
        """The first label of every image, read-only int64 of shape (len,). Reads headers, not images.

        With identity records, only one image of each identity is looked at.
        """
        if self._labels is None:
            labels = self._identity_labels()
            if labels is None:
                labels = self._scan_labels(np.arange(len(self)))
            labels.flags.writeable = False
            self._labels = labels
        return self._labels

    # ---- one record -------------------------------------------------------------------------------

    @functools.cached_property
    def _bytes(self) -> memoryview:
        # Mapped on first use in each process that unpickled this object; a fork shares the map safely,
        # and so do threads, since reading it moves no file position.
        try:
            with self.path.open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read: {error.strerror}; mend that and try again"
            ) from None

    @functools.cached_property
    def _words(self) -> np.ndarray:
        return np.frombuffer(self._bytes, "<u4", count=len(self._bytes) // 4)

    def _payload(self, index: int) -> bytes | memoryview:
        return recordio.read_payload(self._bytes, int(self._offsets[index]))

    def _sample(self, index: int) -> Sample:
        (value, *_), image = recordio.unpack_payload(self._payload(index))
        if not (0 <= value < MAX_EXACT and value == int(value)):
            raise DamageError(f"the label {value} is not a whole number from 0 to {MAX_EXACT - 1}")
        if value >= self.num_classes:
            raise DamageError(f"the label {int(value)} is outside the {self.num_classes} classes of the set")
        if len(image) == 0:
            raise DamageError("there is no image in it")
        return Sample(bytes(image), int(value))

    def _checked(self, index: int, function: Callable[[int], T]) -> T | None:
        """``function(index)``; damage becomes a UserError, or None and a log line under ``skip``."""
        try:
            return function(index)
        except DamageError as damage:
            message = f"{self.describe(index)} is damaged: {damage}"
        if self._on_error == "fail":
            raise UserError(f"{message}; copy or pack the set again, or read it with on_error = skip")
        if index not in self._damaged:
            self._damaged.add(index)
            logger.warning("%s; skipped, the next sound record stands in for it", message)
        return None

    # ---- all records ------------------------------------------------------------------------------

    def _read_index(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and offsets of all records, from the ``.idx`` or, without one, by a scan."""
        path = self.path.with_suffix(".idx")
        if path.exists():
            keys, offsets = recordio.read_index(path)
            if len(offsets) == 0:
                raise UserError(f"{path} lists no records; remove it to have {self.path.name} scanned")
            return keys, offsets
        logger.warning("%s is missing; the records are found by a scan of %s", path, self.path.name)
        offsets = recordio.find_records(self._words)
        if len(offsets) == 0 or offsets[0] != 0:
            raise UserError(f"{self.path} is not a RecordIO file; give a .rec file as MXNet writes them")
        return np.arange(len(offsets)), offsets

    def _select_images(self) -> None:
        """Keep the records that are images; identity records are remembered for ``labels``."""
        keys = np.asarray(self._keys)
        zero = np.flatnonzero(keys == 0)
        stated = self._index_range(int(zero[0])) if len(zero) else None
        if stated is not None:
            if not (np.diff(keys) > 0).all():
                order = np.argsort(keys, kind="stable")
                keys, self._offsets = keys[order], self._offsets[order]
            first, last = stated
            start, stop = int(np.searchsorted(keys, 1)), len(keys)
            if last > first:
                stop = self._first_identity(first, keys)
            images, identities = stop - start, len(keys) - stop
            if last < MAX_EXACT and (images != first - 1 or identities not in (0, last - first)):
                raise UserError(
                    f"{self.path}: record 0 states {first - 1} images and {last - first} identities, the "
                    f"index lists {images} and {identities}; copy the set again, or remove "
                    f"{self.path.with_suffix('.idx').name} to have the records scanned"
                )
            self._identity_offsets = self._offsets[stop:]
            keys, self._offsets = keys[start:stop], self._offsets[start:stop]
        contiguous = len(keys) > 0 and (np.diff(keys) == 1).all()
        self._keys = range(int(keys[0]), int(keys[-1]) + 1) if contiguous else keys

    def _index_range(self, index: int) -> tuple[int, int] | None:
        """The labels (a, b) of an index or identity record, or None if it is an image or damaged."""
        try:
            labels, image = recordio.unpack_payload(self._payload(index))
        except DamageError:
            return None  # reading it as an image will tell
        if len(labels) != 2 or len(image) or not all(1 <= value < 2**31 for value in labels):
            return None
        return int(labels[0]), int(labels[1])

    def _first_identity(self, stated: int, keys: np.ndarray) -> int:
        """The index of the identity record with the key ``stated``, or with what float32 rounded to it."""
        slack = int(np.spacing(np.float32(stated)))  # 0 up to MAX_EXACT
        start, stop = np.searchsorted(keys, (stated - slack, stated + slack)).tolist()
        return next((index for index in range(start, stop) if self._index_range(index)), stop)

    def _scan_labels(self, index_N: np.ndarray) -> np.ndarray:
        labels_N = np.empty(len(index_N), np.int64)
        for start in range(0, len(index_N), _CHUNK_RECORDS):
            rows = index_N[start : start + _CHUNK_RECORDS]
            image_bytes, first, _ = recordio.peek(self._words, self._offsets[rows])
            limit = min(self.num_classes, MAX_EXACT)
            sound = (image_bytes > 0) & (first >= 0) & (first < limit) & (first == np.floor(first))
            labels_N[start : start + len(rows)] = np.where(sound, first, 0)
            # The rare others, split records among them, go the slow way, which names what is wrong.
            for i in np.flatnonzero(~sound):
                labels_N[start + i] = self.read(int(rows[i])).label
        return labels_N

    def _identity_labels(self) -> np.ndarray | None:
        """Labels from the identity records, or None unless their key ranges cover every image once."""
        count = len(self)
        if len(self._identity_offsets) == 0 or not isinstance(self._keys, range) or count >= MAX_EXACT:
            return None
        image_bytes, first, last = recordio.peek(self._words, self._identity_offsets)
        order = np.argsort(first, kind="stable")
        edges = np.append(first[order], np.float32(count + 1))
        whole = (image_bytes == 0) & (first == np.floor(first)) & (first <= count + 1)
        if not (whole.all() and edges[0] == 1 and (last[order] == edges[1:]).all()):
            logger.warning(
                "%s: the identity records do not cover the images; every header is read", self.path
            )
            return None
        sizes = np.diff(edges).astype(np.int64)
        starts = edges[:-1][sizes > 0].astype(np.int64) - 1
        return np.repeat(self._scan_labels(starts), sizes[sizes > 0])


def side_file(rec_path: Path, kind: str) -> Path:
    """``property`` or ``classes.txt`` of a record file: bare beside train.rec, prefixed beside others."""
    return rec_path.with_name(kind if rec_path.stem == "train" else f"{rec_path.stem}.{kind}")


def _find_rec(root: Path) -> Path:
    if root.is_dir():
        if not (root / "train.rec").is_file():
            raise UserError(
                f"{root} holds no train.rec; name the directory of a record set, or its .rec file"
            )
        return root / "train.rec"
    if not root.is_file():
        raise UserError(f"{root} does not exist; name the directory of a record set, or its .rec file")
    if root.suffix != ".rec":
        raise UserError(f"{root} is not a .rec file; name the directory of a record set, or its .rec file")
    return root


def _read_property(rec_path: Path) -> int | None:
    path = side_file(rec_path, "property")
    if not path.exists():
        return None
    try:
        num_classes, _height, _width = (int(field) for field in path.read_text().split(","))
    except ValueError:
        num_classes = 0
    if num_classes < 1:
        raise UserError(f"{path} must be one line 'classes,height,width'; mend it, or remove it")
    return num_classes


class RecordWriter:
    """Write a record set: ``with RecordWriter(directory) as writer: writer.write(encoded, label)``.

    ``index_record=True`` gives the layout of the public face sets: images have the keys 1..N after the
    index record, and identity records follow if the labels came grouped, as 0, 0, .., 1, 1, .., 2.
    ``False`` gives im2rec's: images have the keys 0..N-1 and there is nothing else, as DALI's reader and
    MXNet's ImageRecordIter want it. ``image_size`` (height, width) goes into the property file, (0, 0) if
    images differ in size. ``classes``, the names in label order, go into ``classes.txt``; both may be set
    until the end.

    Files get their names when the block ends well: otherwise nothing is left. Existing ones are never
    overwritten. Raises UserError for a label or an image that the format cannot hold.
    """

    def __init__(
        self,
        directory: str | Path,
        name: str = "train",
        image_size: tuple[int, int] | None = None,
        *,
        index_record: bool = True,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(directory) / f"{name}.rec"
        self.image_size = image_size
        self.classes = classes
        self._index_record = index_record
        self._next_key = int(index_record)
        self._num_classes = 0
        self._first_keys: array.array[int] | None = array.array("q")  # of each class; None: not grouped
        sides = (side_file(self.path, kind) for kind in ("property", "classes.txt"))
        # The .rec comes last into place: where it stands, the set is whole.
        self._targets = (self.path.with_suffix(".idx"), *sides, self.path)

    @property
    def count(self) -> int:
        """Images written so far."""
        return self._next_key - int(self._index_record)

    def __enter__(self) -> "RecordWriter":
        for target in self._targets:
            if target.exists():
                raise UserError(
                    f"{target} exists and is not overwritten; remove it or name another directory"
                )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._rec = self._part(self.path).open("wb")
            self._idx = self._part(self._targets[0]).open("w")
        except OSError as error:
            raise UserError(f"{self.path.parent} cannot be written to: {error.strerror}") from None
        if self._index_record:
            self._append(0, (1.0, 1.0), b"")  # holds the place: its numbers are known at the end
        return self

    def write(self, encoded: bytes, label: int | Sequence[float]) -> None:
        """Append an image. ``label`` is its class, or a vector of float32 that begins with the class."""
        values = (label,) if isinstance(label, (int, np.integer)) else tuple(float(value) for value in label)
        klass = int(values[0]) if values and math.isfinite(values[0]) else -1
        if not 0 <= klass < MAX_EXACT or klass != values[0]:
            raise UserError(
                f"{self.path}: the label {label} of image {self.count} is not a whole number from 0 to "
                f"{MAX_EXACT - 1}, which is what a record can hold; number the classes from 0 on"
            )
        if not 0 < len(encoded) <= recordio.MAX_LENGTH - recordio.HEADER.size - 4 * len(values):
            raise UserError(
                f"{self.path}: image {self.count} has {len(encoded)} bytes; a record holds from 1 to "
                f"{recordio.MAX_LENGTH} of them"
            )
        if self._first_keys is not None and klass == len(self._first_keys):
            self._first_keys.append(self._next_key)
        elif self._first_keys is not None and klass != len(self._first_keys) - 1:
            self._first_keys = None
        self._num_classes = max(self._num_classes, klass + 1)
        self._append(self._next_key, values, encoded)
        self._next_key += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._rec.close()
            self._idx.close()
            for target in self._targets:
                self._part(target).unlink(missing_ok=True)

    def _append(self, key: int, labels: Sequence[float], encoded: bytes) -> None:
        self._idx.write(f"{key}\t{self._rec.tell()}\n")
        self._rec.write(recordio.frame(recordio.pack_payload(key, labels, encoded)))

    def _finish(self) -> None:
        if self.count == 0:
            raise UserError(f"{self.path}: there are no images to write")
        if self._index_record:
            first_key = stop_key = self._next_key
            if self._first_keys is not None and first_key + len(self._first_keys) < MAX_EXACT:
                for bounds in itertools.pairwise([*self._first_keys, first_key]):
                    self._append(stop_key, bounds, b"")
                    stop_key += 1
            self._rec.seek(0)
            self._rec.write(recordio.frame(recordio.pack_payload(0, (first_key, stop_key), b"")))
        self._rec.close()
        self._idx.close()
        height, width = self.image_size or (0, 0)
        _idx, properties, names, _rec = self._targets
        self._part(properties).write_text(f"{self._num_classes},{height},{width}\n")
        if self.classes is not None:
            self._part(names).write_text("".join(f"{name}\n" for name in self.classes), encoding="utf-8")
        for target in self._targets:
            if self._part(target).exists():
                self._part(target).replace(target)

    def _part(self, target: Path) -> Path:
        return target.with_name(f".{target.name}.{os.getpid()}.part")
