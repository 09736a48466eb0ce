"""Write a record set: the counterpart of :mod:`megaclass.data.records.reader`."""

import array
import contextlib
import fcntl
import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megaclass.data.records import recordio
from megaclass.data.records.reader import MAX_EXACT
from megaclass.errors import UserError, make_room, printable


class RecordWriter:
    """Write a record set: ``with RecordWriter(directory) as writer: writer.write(encoded, label)``.

    ``index_record=True`` gives the layout of the public face sets: images have the keys 1..N after the
    index record, and identity records follow if the labels came grouped, as 0, 0, .., 1, 1, .., 2.
    ``False`` gives im2rec's: images have the keys 0..N-1 and there is nothing else, as DALI's reader and
    MXNet's ImageRecordIter want it. The size (height, width) with which all images were written goes into the
    property file, or (0, 0) if they differ or have none. ``classes``, the names in label order, go into
    ``classes.txt``. ``num_classes`` is what the property file states: more than the labels tell, where the last
    classes have no images. ``skipped`` tells of each image that was left out, and goes into ``skipped.txt``. All
    three may be set until the end.

    Files get their names when the block ends well: otherwise nothing is left, and what a killed process left under
    hidden names the next writer replaces. Existing files are never overwritten. Raises UserError for what the format
    cannot hold, where there is no room, and where another process is writing the same set.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        index_record: bool = True,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(directory) / "train.rec"
        self.classes = classes
        self.num_classes = 0
        self.skipped: Sequence[str] = ()
        self.excluded = 0  # images that were left out because they were named
        self._sizes: set[tuple[int, int]] = set()
        self._index_record = index_record
        self._next_key = int(index_record)
        self._cleanup = contextlib.ExitStack()
        self._first_keys: array.array[int] | None = array.array("q")  # of each class; None: not grouped
        self._prepared = False
        self._hidden = self.path.with_name(".train.part")  # a directory for files that are not finished
        # The .rec comes last into place: where it stands, the set is whole.
        names = ("train.idx", "property", "classes.txt", "skipped.txt", "train.rec")
        self._targets = [self.path.with_name(name) for name in names]

    @property
    def count(self) -> int:
        """Images written so far."""
        return self._next_key - int(self._index_record)

    def __enter__(self) -> "RecordWriter":
        self._refuse_to_overwrite()
        self._check_classes()
        with self._writing(), contextlib.ExitStack() as stack:
            self._hidden.mkdir(parents=True, exist_ok=True)
            rec = self._hidden / self.path.name
            rec.touch()  # what is in it stays until it is known that nobody else writes it
            self._rec = stack.enter_context(rec.open("r+b"))
            try:
                fcntl.flock(self._rec, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: another process is writing this set; wait for it or name another directory"
                ) from None
            except OSError:
                pass  # a file system without locks, as some over a network
            self._refuse_to_overwrite()  # a writer that had the lock until now may have given this file its name
            stack.callback(shutil.rmtree, self._hidden, ignore_errors=True)
            # What a killed process left.
            self._rec.truncate(0)
            for left in {*self._hidden.iterdir()} - {rec}:
                left.unlink()
            self._idx = stack.enter_context((self._hidden / self._targets[0].name).open("w"))
            if self._index_record:
                self._append(0, (1.0, 1.0), b"")  # holds the place: its numbers are known at the end
            self._cleanup = stack.pop_all()
        return self

    def write(self, encoded: bytes, label: int | Sequence[float], size: tuple[int, int] | None = None) -> None:
        """Append an image. ``label`` is its class, or a vector of float32 that begins with the class."""
        if size is not None and len(self._sizes) < 2:
            self._sizes.add(size)
        values = (label,) if isinstance(label, (int, np.integer)) else tuple(float(value) for value in label)
        klass = int(values[0]) if values and math.isfinite(values[0]) else -1
        if not 0 <= klass < MAX_EXACT or klass != values[0]:
            raise UserError(
                f"{self.path}: the label {label} of image {self.count} is not a whole number from 0 to "
                f"{MAX_EXACT - 1}, which is what a record can hold; number the classes from 0 on"
            )
        most = recordio.MAX_LENGTH - len(recordio.pack_payload(0, values, b""))
        if not 0 < len(encoded) <= most:
            raise UserError(
                f"{self.path}: image {self.count} has {len(encoded)} bytes; a record holds from 1 to {most} of them"
            )
        if self._first_keys is not None and klass == len(self._first_keys):
            self._first_keys.append(self._next_key)
        elif self._first_keys is not None and klass != len(self._first_keys) - 1:
            self._first_keys = None
        self.num_classes = max(self.num_classes, klass + 1)
        with self._writing():
            self._append(self._next_key, values, encoded)
        self._next_key += 1

    def prepare(self) -> None:
        """Write what is still wanting, so that only names are: for those who write several sets, or none of them."""
        if self._prepared:
            return
        self._check_classes()
        if self.count == 0:
            raise UserError(f"{self.path}: there are no images to write")
        with self._writing():
            if self._index_record:
                self._finish()
            height, width = min(self._sizes) if len(self._sizes) == 1 else (0, 0)
            self.num_classes = max(self.num_classes, len(self.classes or ()))
            properties, names, skipped = (self._hidden / target.name for target in self._targets[1:4])
            properties.write_text(f"{self.num_classes},{height},{width}\n")
            if self.classes is not None:
                names.write_text("".join(f"{name}\n" for name in self.classes), encoding="utf-8")
            if self.skipped:
                skipped.write_text("".join(f"{printable(line)}\n" for line in self.skipped))
            self._rec.flush()
            self._idx.flush()
        self._prepared = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.prepare()
                self._refuse_to_overwrite()  # what another writer may have finished meanwhile
                with self._writing():
                    for target in self._targets:
                        if (finished := self._hidden / target.name).exists():
                            finished.replace(target)
        finally:
            with contextlib.suppress(OSError):  # of bytes still to be written, to a file that is gone
                self._cleanup.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; {make_room(error)}name another directory"
            ) from None

    def _refuse_to_overwrite(self) -> None:
        for target in self._targets:
            if target.exists():
                raise UserError(f"{target} exists and is not overwritten; remove it or name another directory")

    def _check_classes(self) -> None:
        for name in self.classes or ():
            # A file name in another encoding does not come back as it was.
            if name.encode(errors="replace").decode().splitlines() not in ([name], []):
                raise UserError(
                    f"{self.path}: the class name {name!a} is not one line of UTF-8, as classes.txt holds "
                    "them; rename the class"
                )

    def _append(self, key: int, labels: Sequence[float], encoded: bytes) -> None:
        self._idx.write(f"{key}\t{self._rec.tell()}\n")
        self._rec.write(recordio.frame(recordio.pack_payload(key, labels, encoded)))

    def _finish(self) -> None:
        """Write the identity records, where labels came grouped, and say in record 0 where they are."""
        first_key = stop_key = self._next_key
        if self._first_keys is not None and first_key + len(self._first_keys) < MAX_EXACT:
            for bounds in itertools.pairwise([*self._first_keys, first_key]):
                self._append(stop_key, bounds, b"")
                stop_key += 1
        self._rec.seek(0)
        self._rec.write(recordio.frame(recordio.pack_payload(0, (first_key, stop_key), b"")))
