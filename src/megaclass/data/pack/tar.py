"""A tar as a source: class directories, class tars within a tar, or flat images with labels given apart.

A tar within a tar counts as a directory of its name, so that ``n01440764.tar`` with ``n01440764_18.JPEG`` in it is
``n01440764/n01440764_18.JPEG``. The names of all members are read first, header by header: only then it is known how
many classes there are and which number each has. Memory: some 200 bytes an image. Nothing is ever written by a
member's name.
"""

import contextlib
import itertools
import logging
import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megaclass.data.dataset import DamagedSampleError, first_line
from megaclass.data.folder import IMAGE_SUFFIXES, suffix_of, tell_left_out
from megaclass.data.imagelist import MAX_BYTES
from megaclass.data.pack.labels import label_by_file, number_names
from megaclass.data.pack.source import Source, SourceOptions
from megaclass.errors import UserError

logger = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_EXTENSION = 1 << 16  # bytes of long names and pax headers of one member; names end at some 4,096
_MAX_SIZE = 1 << 60  # beyond any file system
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


class _Image(NamedTuple):
    """An image: its name with forward slashes, and where its bytes lie in the archive."""

    name: str
    offset: int
    size: int


def open_tar(path: Path, options: SourceOptions, known: list[str] | None) -> Source:
    """The images of the archive at ``path``; see ``pack``. ``known``: the names of all classes, if they were given.

    Raises UserError.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; mend that and try again") from None
    try:
        with _told(path):
            archive = _Archive.open(fileobj=raw, mode="r:*", encoding="utf-8", errors="surrogateescape")
        file = archive.fileobj
        assert file is not None
        compressed = file is not raw
        images = _images(path, archive)
        if options.root is not None:
            images = _below(path, images, options.root)
        by_name = sorted(images)
        for one, other in itertools.pairwise(by_name):
            if one.name == other.name:
                raise UserError(f"{path} holds {shown(one.name)} twice; make the archive anew")
        if not compressed:  # as packing the folder would have them; a compressed one is read as it lies
            images = by_name
        if options.labels is not None:
            labels, classes = label_by_file([image.name for image in images], options, known)
        else:
            images, labels, classes = _classify(path, images, options.class_depth)
    except BaseException:
        raw.close()
        raise

    def describe(row: int) -> str:
        return f"{path}/{shown(images[row].name)}"

    def read(row: int) -> bytes:
        _, offset, size = images[row]
        if size > MAX_BYTES:
            raise DamagedSampleError(
                f"{describe(row)} states {size:,} bytes, the limit is {MAX_BYTES:,}; remove it"
            )
        with _told(path):
            if compressed:
                file.seek(offset)
                content = file.read(size)
            else:
                content = os.pread(raw.fileno(), size, offset)
        if len(content) < size:
            # Not damage to one image: it was whole when its headers were read, and all that follows is gone too.
            raise UserError(f"{describe(row)} ends early: {path} was cut short meanwhile; copy it again")
        return content

    return Source(labels, classes, read, describe, in_order=compressed, close=raw.close)


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


def _images(path: Path, archive: _Archive) -> list[_Image]:
    """All images that are not hidden, those of tars within the tar by their full names."""
    images: list[_Image] = []
    others: Counter[str] = Counter()
    for info, name, start in _files(archive, path):
        if name.lower().endswith(IMAGE_SUFFIXES):
            images.append(_Image(name, start + info.offset_data, info.size))
        else:
            others[suffix_of(name)] += 1
    tell_left_out(path, others)
    if not images:
        raise UserError(f"{path} holds no images; {', '.join(IMAGE_SUFFIXES)} are read")
    return images


def _below(path: Path, images: list[_Image], root: str) -> list[_Image]:
    """What lies below the directory ``root`` of the archive, which goes from the names."""
    prefix = "/".join(part for part in root.split("/") if part not in ("", ".")) + "/"
    found = [image for image in images if image.name.startswith(prefix)]
    if not found:
        top = sorted({image.name.partition("/")[0] for image in images})
        raise UserError(
            f"root: {path} has no images below {root}; it begins with {shown(', '.join(top[:5]))}"
        )
    return [image._replace(name=image.name.removeprefix(prefix)) for image in found]


def _classify(
    path: Path, images: list[_Image], class_depth: int
) -> tuple[list[_Image], np.ndarray, list[str]]:
    """Images in class directories, labels and class names. Directories at the top that all share are passed over."""
    parts_of = {d: d.split("/") if d else [] for d in {image.name.rpartition("/")[0] for image in images}}
    deep = [parts for parts in parts_of.values() if len(parts) >= class_depth]
    if not deep:
        raise UserError(
            f"{path}: its images lie in no class directories{'' if class_depth == 1 else ' so deep'}; give "
            "--labels FILE with their classes"
        )
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*deep, strict=False))
    top = min(len(list(shared)), min(map(len, deep)) - class_depth)
    class_of = {
        directory: "/".join(parts[top : top + class_depth])
        for directory, parts in parts_of.items()
        if len(parts) >= top + class_depth
    }
    taken = [image for image in images if image.name.rpartition("/")[0] in class_of]
    if len(taken) < len(images):
        left = next(image.name for image in images if image.name.rpartition("/")[0] not in class_of)
        logger.warning(
            "%s: %d images lie in no class directory and are left out, %s the first",
            path,
            len(images) - len(taken),
            shown(left),
        )
    return taken, *number_names([class_of[image.name.rpartition("/")[0]] for image in taken])


def _files(archive: _Archive, path: Path) -> Iterator[tuple[tarfile.TarInfo, str, int]]:
    """Header, full name and place of the archive that holds it, of all files that are not hidden."""
    for info in _walk(archive, str(path)):
        low = info.name.lower()
        if not low.endswith(TAR_SUFFIXES):
            yield info, info.name, 0
            continue
        where = f"{path}/{shown(info.name)}"
        if not low.endswith(".tar"):
            raise UserError(
                f"{where} is compressed; a tar within a tar must not be: expand it, or pack it alone"
            )
        with _told(where):
            nested = _Archive(fileobj=archive.extractfile(info), encoding="utf-8", errors="surrogateescape")
        for inner in _walk(nested, where):
            if inner.name.lower().endswith(TAR_SUFFIXES):
                raise UserError(
                    f"{where}/{shown(inner.name)} is a tar within a tar within a tar; tars may be nested once: pack "
                    f"{shown(info.name)} alone"
                )
            yield inner, f"{info.name[: -len('.tar')]}/{inner.name}", info.offset_data


def _walk(archive: _Archive, where: str) -> Iterator[tarfile.TarInfo]:
    """The files of ``archive`` as they lie, without hidden ones, their names made plain.

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
        if not info.isdir() and not any(part.startswith(".") for part in info.name.split("/")):
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
