"""Write a record set: the counterpart of :mod:`megaclass.data.records.reader`."""

import array
import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from megaclass.data.records import recordio
from megaclass.data.records.journal import Journal, Plan
from megaclass.data.records.reader import MAX_EXACT, side_file
from megaclass.errors import UserError, make_room

_WHOLE = "whole"  # key of the journal's last entry: every byte is written, only names are wanting


class RecordWriter:
    """Write a record set: ``with RecordWriter(directory) as writer: writer.write(encoded, label)``.

    ``index_record=True`` gives the layout of the public face sets: images have the keys 1..N after the
    index record, and identity records follow if the labels came grouped, as 0, 0, .., 1, 1, .., 2.
    ``False`` gives im2rec's: images have the keys 0..N-1 and there is nothing else, as DALI's reader and
    MXNet's ImageRecordIter want it. ``image_size`` (height, width) goes into the property file, (0, 0) if
    images differ in size. ``classes``, the names in label order, go into ``classes.txt``. ``num_classes`` is what
    the property file states: more than the labels tell, where the last classes have no images. All three may be
    set until the end.

    Files get their names when the block ends well: otherwise nothing is left. Existing ones are never
    overwritten. Raises UserError for what the format cannot hold, and where there is no room. ``prepare`` does
    all but the naming, for those who write several sets of which all or none should be there.

    With a ``plan``, which says in JSON what is being written, the set can be continued: what was written up to
    the last ``checkpoint`` stays beside it under hidden names, however the block or the process ends, and the
    next writer of the same plan begins there. It finds in ``notes`` what the checkpoints were given; ``whole`` says
    that the set is there already, since the process ended in its last step: nothing is to be written then. A writer
    of another plan is refused, unless it is told to ``restart``, and so is a second one at the same time.
    """

    def __init__(
        self,
        directory: str | Path,
        name: str = "train",
        image_size: tuple[int, int] | None = None,
        *,
        index_record: bool = True,
        classes: Sequence[str] | None = None,
        plan: Plan | None = None,
        restart: bool = False,
    ) -> None:
        self.path = Path(directory) / f"{name}.rec"
        self.image_size = image_size
        self.classes = classes
        self.num_classes = 0
        self.resumable = plan is not None
        self.whole = False
        self.notes: list[Any] = []
        self._index_record = index_record
        self._next_key = int(index_record)
        self._files = contextlib.ExitStack()
        self._first_keys: array.array[int] | None = array.array("q")  # of each class; None: not grouped
        self._noted_classes = 0  # how many of these the journal holds
        self._plan = plan
        self._restart = restart
        self._prepared = self._named = False
        self._journal: Journal | None = None
        self._journal_path = self.path.with_name(f".{name}.journal")
        sides = (side_file(self.path, kind) for kind in ("property", "classes.txt"))
        # The .rec comes last into place: where it stands, the set is whole.
        self._targets = (self.path.with_suffix(".idx"), *sides, self.path)

    @property
    def count(self) -> int:
        """Images written so far."""
        return self._next_key - int(self._index_record)

    def __enter__(self) -> "RecordWriter":
        if self._plan is None or (self.path.exists() and not self._journal_path.exists()):
            self._refuse_to_overwrite()
        self._check_classes()
        try:
            with self._writing():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                rec_bytes = idx_bytes = 0
                if self._plan is not None:
                    rec_bytes, idx_bytes = self._resume(self._plan)
                if self.whole:
                    return self
                self._rec = self._files.enter_context(_open_at(self._part(self.path), rec_bytes, "b"))
                self._idx = self._files.enter_context(_open_at(self._part(self._targets[0]), idx_bytes, ""))
                if self._index_record and rec_bytes == 0:
                    self._append(0, (1.0, 1.0), b"")  # holds the place: its numbers are known at the end
        except BaseException:
            self._leave()
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
        self.num_classes = max(self.num_classes, klass + 1)
        with self._writing():
            self._append(self._next_key, values, encoded)
        self._next_key += 1

    def checkpoint(self, note: Any) -> None:
        """Make sure of all that was written so far. ``note``, any JSON, is for whoever continues."""
        assert self._journal is not None, "a writer without a plan cannot be continued"
        with self._writing():
            self._sync()
            firsts = None if self._first_keys is None else self._first_keys[self._noted_classes :].tolist()
            self._noted_classes += len(firsts or ())
            self._journal.append(
                {
                    "rec_bytes": self._rec.tell(),
                    "idx_bytes": os.fstat(self._idx.fileno()).st_size,  # all is written: _sync
                    "next_key": self._next_key,
                    "num_classes": self.num_classes,
                    "first_keys": firsts,
                    "note": note,
                }
            )

    def prepare(self) -> None:
        """Write all that is still wanting, so that only names are: what can fail has failed by then."""
        if self._prepared or self.whole:
            return
        self._check_classes()
        with self._writing():
            self._finish()
        self._prepared = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and not self.whole:
                self.prepare()
                with self._writing():
                    self._name()
        finally:
            self._leave()

    def _resume(self, plan: Plan) -> tuple[int, int]:
        """Bytes of the ``.rec`` and the ``.idx`` that an earlier writer of ``plan`` made sure of."""
        journal = Journal(self._journal_path)
        try:
            self.whole = self._claim(journal, plan)
        except BaseException:
            journal.close() if journal.plan else journal.remove()
            raise
        lengths = _lengths(self._targets if self.whole else self._parts)
        reached = (0, 0)
        for entry in journal.entries:
            # A part that was cut or removed counts as far as it goes.
            if _WHOLE in entry or entry["rec_bytes"] > lengths[-1] or entry["idx_bytes"] > lengths[0]:
                break
            reached = entry["rec_bytes"], entry["idx_bytes"]
            self._next_key = entry["next_key"]
            self.num_classes = max(self.num_classes, entry["num_classes"])
            if entry["first_keys"] is None:
                self._first_keys = None
            elif self._first_keys is not None:
                self._first_keys.extend(entry["first_keys"])
                self._noted_classes = len(self._first_keys)
            self.notes.append(entry["note"])
        if self.whole:
            journal.remove()
        else:
            journal.keep(len(self.notes))
            self._journal = journal
        return reached

    def _claim(self, journal: Journal, plan: Plan) -> bool:
        """Make the journal one of ``plan``. Returns whether the set is there and only the journal was left over.

        Raises UserError if the journal is of another plan, or another set is there already.
        """
        lengths = journal.entries[-1].get(_WHOLE) if journal.entries else None
        if lengths == _lengths(self._targets) and not self._restart and not journal.changes(plan):
            return True
        if lengths is not None and not self.path.exists():
            # Killed while the files got their names: those that have one are the journal's, as it says.
            for target in self._targets:
                if target.exists():
                    target.replace(self._part(target))
        self._refuse_to_overwrite()
        if self._restart or not journal.entries or _lengths(self._parts)[-1] == 0:
            journal.begin(plan)
        journal.require(plan)
        return False

    def _leave(self) -> None:
        """Close all; remove what has no name yet, unless a later writer can go on from it."""
        with contextlib.suppress(OSError):  # of bytes still to be written, to a file that may go now
            self._files.close()
        if self._plan is not None and self._journal is None:
            return  # what is there belongs to another writer
        if self._journal is not None and self._journal.entries and self.count and not self._named:
            self._journal.close()
            return
        try:
            for part in () if self._named else self._parts:
                with contextlib.suppress(OSError):
                    part.unlink()
        finally:
            if self._journal is not None:
                self._journal.remove()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            room = make_room(error)
            goes_on = room and self._plan is not None
            then = "give the same again, which continues" if goes_on else "name another directory"
            raise UserError(f"{self.path} cannot be written: {error.strerror}; {room}{then}") from None

    def _refuse_to_overwrite(self) -> None:
        for target in self._targets:
            if target.exists():
                raise UserError(
                    f"{target} exists and is not overwritten; remove it or name another directory"
                )

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

    def _sync(self) -> None:
        for file in (self._rec, self._idx):
            file.flush()
            os.fsync(file.fileno())

    def _finish(self) -> None:
        """Write what comes last, and the small files."""
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
        height, width = self.image_size or (0, 0)
        _idx, properties, names, _rec = self._targets
        classes = self.classes or ()
        self.num_classes = max(self.num_classes, len(classes))
        self._part(properties).write_text(f"{self.num_classes},{height},{width}\n")
        if self.classes is not None:
            self._part(names).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        if self._journal is not None:
            self._sync()
            self._journal.append({_WHOLE: _lengths(self._parts)})
        self._files.close()
        self._refuse_to_overwrite()

    def _name(self) -> None:
        self._refuse_to_overwrite()  # what another writer may have finished meanwhile
        for target in self._targets:
            if self._part(target).exists():
                self._part(target).replace(target)
        self._named = True

    @property
    def _parts(self) -> list[Path]:
        return [self._part(target) for target in self._targets]

    def _part(self, target: Path) -> Path:
        # Without a plan nobody continues, and two writers may be at work.
        own = f"{os.getpid()}." if self._plan is None else ""
        return target.with_name(f".{target.name}.{own}part")


def _lengths(paths: Iterable[Path]) -> list[int]:
    return [path.stat().st_size if path.exists() else 0 for path in paths]


def _open_at(path: Path, size: int, mode: str) -> IO[Any]:
    """The file, cut to ``size`` bytes, to write on from there; ``mode`` is "b" or "" for text."""
    file = path.open(f"r+{mode}" if size else f"w{mode}")
    file.truncate(size)
    file.seek(0, os.SEEK_END)
    return file


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a file name in another encoding
        return False
    return True
