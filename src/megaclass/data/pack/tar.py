"""A tar as a source: class directories, class tars within a tar, or flat images with labels given apart.

A tar within a tar counts as a directory of its name, so that ``n01440764.tar`` with ``n01440764_18.JPEG`` in it is
``n01440764/n01440764_18.JPEG``. The names of all members are read first, header by header: only then it is known how
many classes there are and which number each has. Memory: some 150 bytes an image. Nothing is ever written by a
member's name.
"""

import array
import contextlib
import itertools
import logging
import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from megaclass.data.dataset import DamagedSampleError, first_line
from megaclass.data.folder import IMAGE_SUFFIXES, suffix_of, tell_left_out
from megaclass.data.imagelist import MAX_BYTES
from megaclass.data.pack.labels import label_by_file
from megaclass.data.pack.source import Source, SourceOptions
from megaclass.errors import UserError

logger = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_EXTENSION = 1 << 16  # bytes of long names and pax headers of one member; names end at some 4,096
_MAX_SIZE = 1 << 60  # beyond any file system
_NOTE_EVERY = 1000
_AFTER_END = 1 << 16  # bytes looked at behind an end: archives are padded to 10,240
_TAR_ERRORS = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
    zlib.error,
    lzma.LZMAError,
)
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_VOLUME_LABEL = b"V"
Scanning = Callable[[int, int], None]


def open_tar(
    path: Path, options: SourceOptions, known: list[str] | None, scanning: Scanning | None = None
) -> Source:
    """The images of the archive at ``path``; see ``pack``. Raises UserError.

    ``known``: the names of all classes, if they were given. ``scanning`` is called with (bytes passed, bytes in
    all) while names are read.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; mend that and try again") from None
    try:
        contents = _Contents(path, raw, scanning)
        contents.select(options.root)
        if not contents.compressed:
            contents.sort()  # as packing the folder would have them; a compressed one is read as it lies
        contents.refuse_twins()
        if options.labels is not None:
            labels, classes = label_by_file(contents.names, options, known)
        else:
            labels, classes = contents.classify(options.class_depth)
    except BaseException:
        raw.close()
        raise
    return Source(
        labels=labels,
        classes=classes,
        read=contents.read,
        describe=contents.describe,
        in_order=contents.compressed,
        close=raw.close,
    )


class _RefusedError(Exception):
    """What is wrong with an archive, in words that follow its name."""


class _Header(tarfile.TarInfo):
    """A header that is refused before anything is read by what it claims, and never passed over in silence."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        """As tarfile's, which takes a damaged header for the end of the archive."""
        at = archive.offset
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.ended = True
            raise
        except tarfile.HeaderError as error:
            if at == 0:
                raise  # it may be compressed
            raise _RefusedError(
                f"has no sound tar header at byte {at:,} ({error}): damaged or cut short; copy it again"
            ) from None

    def _proc_member(self, archive: Any) -> Any:
        """Sums up what extended headers take: tarfile reads them into memory, whatever size they state."""
        if self.type == tarfile.XGLTYPE:
            archive.global_bytes += self.size
        elif self.type in _EXTENSIONS:
            archive.extended_bytes += self.size
        else:
            archive.extended_bytes = 0
        found = archive.extended_bytes + archive.global_bytes
        if found > MAX_EXTENSION or (self.size < 0 and not self.isreg()):
            raise _RefusedError(
                f"has extended headers of {found:,} bytes at byte {archive.offset:,}, the limit is {MAX_EXTENSION:,}; "
                "make the archive anew"
            )
        return super()._proc_member(archive)  # type: ignore[misc]

    def _refuse_sparse(self, *_: Any) -> Any:
        raise _RefusedError(f"has {shown(self.name)}, a sparse file, which cannot be packed; pack the folder")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


class _Archive(tarfile.TarFile):
    tarinfo = _Header
    ended = False  # whether the end mark was met
    extended_bytes = global_bytes = 0


class _Member(NamedTuple):
    """A file or directory: its name with forward slashes, and where its bytes lie in the archive."""

    name: str
    offset: int
    size: int
    is_dir: bool


class _Contents:
    """Where the images of an archive lie; names, offsets and sizes go by row."""

    def __init__(self, path: Path, raw: BinaryIO, scanning: Scanning | None) -> None:
        self.path, self._raw = path, raw
        self.names: list[str] = []
        self._offsets, self._sizes = array.array("q"), array.array("q")
        self._directories: set[str] = set()
        size = path.stat().st_size
        with _told(path):
            archive = _Archive.open(fileobj=raw, mode="r:*", encoding="utf-8", errors="surrogateescape")
        assert archive.fileobj is not None
        self._file = archive.fileobj
        self.compressed = self._file is not raw
        others: Counter[str] = Counter()
        for member in _members(archive, path):
            if member.is_dir:
                self._directories.add(member.name)
            elif member.name.lower().endswith(IMAGE_SUFFIXES):
                self.names.append(member.name)
                self._offsets.append(member.offset)
                self._sizes.append(member.size)
                if scanning is not None and len(self.names) % _NOTE_EVERY == 0:
                    scanning(raw.tell(), size)
            else:
                others[suffix_of(member.name)] += 1
        tell_left_out(path, others)
        if not self.names:
            raise UserError(f"{self.path} holds no images; {', '.join(IMAGE_SUFFIXES)} are read")

    def describe(self, row: int) -> str:
        return f"{self.path}/{shown(self.names[row])}"

    def read(self, row: int) -> bytes:
        """The bytes of an image; of a compressed archive in the order of the rows, by one thread."""
        offset, size = self._offsets[row], self._sizes[row]
        if size > MAX_BYTES:
            raise DamagedSampleError(
                f"{self.describe(row)} states {size:,} bytes, the limit is {MAX_BYTES:,}; remove it"
            )
        with _told(self.path):
            if not self.compressed:
                content = os.pread(self._raw.fileno(), size, offset)
            else:
                self._file.seek(offset)
                content = self._file.read(size)
        if len(content) < size:
            # Not damage to one image: it was whole when its headers were read, and all that follows is gone too.
            raise UserError(
                f"{self.describe(row)} ends early: {self.path} was cut short meanwhile; copy it again"
            )
        return content

    def select(self, root: str | None) -> None:
        """Leave what lies below the directory ``root`` of the archive, which goes from the names."""
        if root is None:
            return
        prefix = "/".join(part for part in root.split("/") if part not in ("", ".")) + "/"
        rows = [row for row, name in enumerate(self.names) if name.startswith(prefix)]
        if not rows:
            top = sorted({name.partition("/")[0] for name in self.names})
            raise UserError(
                f"root: {self.path} has no images below {root}; it begins with {shown(', '.join(top[:5]))}"
            )
        self._take(rows)
        self.names = [name.removeprefix(prefix) for name in self.names]
        self._directories = {d.removeprefix(prefix) for d in self._directories if d.startswith(prefix)}

    def sort(self) -> None:
        self._take(sorted(range(len(self.names)), key=self.names.__getitem__))

    def refuse_twins(self) -> None:
        for one, other in itertools.pairwise(sorted(self.names)):
            if one == other:
                raise UserError(f"{self.path} holds {shown(one)} twice; make the archive anew")

    def classify(self, class_depth: int) -> tuple[np.ndarray, list[str]]:
        """Labels and class names by directories. Those at the top that all images share are passed over."""
        directories = {name.rpartition("/")[0] for name in self.names}
        parts_of = {directory: directory.split("/") if directory else [] for directory in directories}
        deep = [parts for parts in parts_of.values() if len(parts) >= class_depth]
        if not deep:
            raise UserError(
                f"{self.path}: its images lie in no class directories{'' if class_depth == 1 else ' so deep'}; give "
                "--labels FILE with their classes"
            )
        shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*deep, strict=False))
        top = min(len(list(shared)), min(map(len, deep)) - class_depth)
        class_of = {
            directory: "/".join(parts[top : top + class_depth])
            for directory, parts in parts_of.items()
            if len(parts) >= top + class_depth
        }
        rows = [row for row, name in enumerate(self.names) if name.rpartition("/")[0] in class_of]
        if len(rows) < len(self.names):
            left = next(name for name in self.names if name.rpartition("/")[0] not in class_of)
            logger.warning(
                "%s: %d images lie in no class directory and are left out, %s the first",
                self.path,
                len(self.names) - len(rows),
                shown(left),
            )
            self._take(rows)
        classes = sorted(set(class_of.values()))
        below = [
            "/".join(parts[top:]) for d in self._directories if (parts := d.split("/"))[:top] == deep[0][:top]
        ]
        for name in sorted({name for name in below if name.count("/") == class_depth - 1} - {"", *classes}):
            logger.warning("%s: the class %s holds no images", self.path, shown(name))
        number_of = {name: number for number, name in enumerate(classes)}
        labels = (number_of[class_of[name.rpartition("/")[0]]] for name in self.names)
        return np.fromiter(labels, np.int64, len(self.names)), classes

    def _take(self, rows: list[int]) -> None:
        self.names = [self.names[row] for row in rows]
        self._offsets = array.array("q", (self._offsets[row] for row in rows))
        self._sizes = array.array("q", (self._sizes[row] for row in rows))


def _members(archive: _Archive, path: Path) -> Iterator[_Member]:
    """All members that are not hidden, those of tars within the tar by their full names."""
    for info in _walk(archive, str(path)):
        low = info.name.lower()
        if info.isdir() or not low.endswith(TAR_SUFFIXES):
            yield _Member(info.name, info.offset_data, info.size, info.isdir())
            continue
        where = f"{path}/{shown(info.name)}"
        if not low.endswith(".tar"):
            raise UserError(
                f"{where} is compressed; a tar within a tar must not be: expand it, or pack it alone"
            )
        directory = info.name[: -len(".tar")]
        yield _Member(directory, info.offset_data, 0, is_dir=True)
        with _told(where):
            nested = _Archive(fileobj=archive.extractfile(info), encoding="utf-8", errors="surrogateescape")
        for inner in _walk(nested, where):
            if not inner.isdir() and inner.name.lower().endswith(TAR_SUFFIXES):
                raise UserError(
                    f"{where}/{shown(inner.name)} is a tar within a tar within a tar; tars may be nested once: pack "
                    f"{shown(info.name)} alone"
                )
            offset = info.offset_data + inner.offset_data
            yield _Member(f"{directory}/{inner.name}", offset, inner.size, inner.isdir())


def _walk(archive: _Archive, where: str) -> Iterator[tarfile.TarInfo]:
    """The files and directories of ``archive`` as they lie, without hidden ones, their names made plain.

    Raises UserError for links, devices and sparse files, names that leave the archive or are no UTF-8, sizes that
    do not fit, damaged headers and a missing end.
    """
    while True:
        with _told(where):
            info = archive.next()
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            if info is None:
                _check_end(archive)
                return
            if info.type == _VOLUME_LABEL:
                continue
            info.name = _plain_name(info)
        # What macOS adds is hidden, among others: ``._n01440764.tar`` is no tar.
        if not any(part.startswith(".") for part in info.name.split("/")):
            yield info


def _plain_name(info: tarfile.TarInfo) -> str:
    parts = [part for part in info.name.split("/") if part not in ("", ".")]
    if not 0 <= info.size <= _MAX_SIZE:
        what = f"states {info.size:,} bytes"
    elif info.name.startswith("/") or ".." in parts:
        what = "has a name that leads out of the archive"
    elif "\0" in info.name or any("\udc80" <= letter <= "\udcff" for letter in info.name):
        what = "has a name that is no UTF-8"
    elif info.issym() or info.islnk():
        what = f"is a {'symbolic' if info.issym() else 'hard'} link, which cannot be packed"
    elif not info.isreg() and not info.isdir():
        what = f"is no file but of the type {info.type!a}, which cannot be packed"
    else:
        return "/".join(parts)
    raise _RefusedError(
        f"has {shown(info.name)}, which {what}; make the archive anew without it, or pack the folder"
    )


def _check_end(archive: _Archive) -> None:
    assert archive.fileobj is not None
    if not archive.ended:
        raise _RefusedError(f"has no end mark at byte {archive.offset:,}; it was cut short: copy it again")
    if archive.fileobj.read(_AFTER_END).strip(b"\0"):
        raise _RefusedError(
            f"goes on behind its end mark at byte {archive.offset:,}; archives that were joined by cat must be packed "
            "one by one, or joined by tar --concatenate"
        )


@contextlib.contextmanager
def _told(where: object) -> Iterator[None]:
    """Within the block, whatever ``tarfile`` makes of a damaged archive is a UserError that begins with ``where``."""
    try:
        yield
    except _RefusedError as refused:
        raise UserError(f"{where} {refused}") from None
    except _TAR_ERRORS as error:
        if "could not be opened" in str(error):  # a line for each way that was tried
            raise UserError(f"{where} has no sound tar header at byte 0; copy it again") from None
        raise UserError(f"{where} is damaged or was cut short ({first_line(error)}); copy it again") from None


def shown(name: str) -> str:
    """A member's name for a message: whatever would not print in one line is escaped."""
    return name if name.isprintable() else ascii(name)
