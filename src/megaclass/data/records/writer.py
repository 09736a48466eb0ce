"""Write a record set: the counterpart of :mod:`megaclass.data.records.reader`."""

import array
import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megaclass.data.records import recordio
from megaclass.data.records.reader import MAX_EXACT, side_file
from megaclass.errors import UserError


class RecordWriter:
    """Write a record set: ``with RecordWriter(directory) as writer: writer.write(encoded, label)``.

    ``index_record=True`` gives the layout of the public face sets: images have the keys 1..N after the
    index record, and identity records follow if the labels came grouped, as 0, 0, .., 1, 1, .., 2.
    ``False`` gives im2rec's: images have the keys 0..N-1 and there is nothing else, as DALI's reader and
    MXNet's ImageRecordIter want it. ``image_size`` (height, width) goes into the property file, (0, 0) if
    images differ in size. ``classes``, the names in label order, go into ``classes.txt``; both may be set
    until the end.

    Files get their names when the block ends well: otherwise nothing is left. Existing ones are never
    overwritten. Raises UserError for what the format cannot hold, and where there is no room.
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
        self._files = contextlib.ExitStack()
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
        self._check_classes()
        try:
            with self._writing():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._rec = self._files.enter_context(self._part(self.path).open("wb"))
                self._idx = self._files.enter_context(self._part(self._targets[0]).open("w"))
                if self._index_record:
                    self._append(0, (1.0, 1.0), b"")  # holds the place: its numbers are known at the end
        except BaseException:
            self._discard()
            raise
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
        with self._writing():
            self._append(self._next_key, values, encoded)
        self._next_key += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._check_classes()
                with self._writing():
                    self._finish()
        finally:
            self._discard()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # of bytes still to be written, to a file that goes now
            self._files.close()
        for target in self._targets:
            with contextlib.suppress(OSError):
                self._part(target).unlink()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; make room there or name another directory"
            ) from None

    def _check_classes(self) -> None:
        for name in self.classes or ():
            if name.splitlines() not in ([name], []) or not _is_utf8(name):
                raise UserError(
                    f"{self.path}: the class name {name!a} is not one line of UTF-8, as classes.txt holds "
                    "them; rename the class"
                )

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
        self._files.close()
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


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a file name in another encoding
        return False
    return True
