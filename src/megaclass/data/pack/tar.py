"""A tar as a source: class directories, class tars within a tar, or flat images with labels given apart.

A tar within a tar counts as a directory of its name, so that ``n01440764.tar`` with ``n01440764_18.JPEG`` in it is
``n01440764/n01440764_18.JPEG``. The names of all members are read first, header by header: only then it is known how
many classes there are and which number each has. Memory: some 200 bytes an image. Nothing is ever written by a
member's name.
"""

import contextlib
import itertools
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.folder import IMAGE_SUFFIXES, MAX_BYTES, suffix_of, tell_left_out
from megaclass.data.pack.labels import label_by_file, number_names
from megaclass.data.pack.source import Source
from megaclass.errors import UserError, first_line, printable

logger = logging.getLogger(__name__)

MAX_EXTENSION = 1 << 16  # bytes of a long name or of pax headers; names end at some 4,096
_AFTER_END = 1 << 16  # bytes looked at behind an end: archives are padded to 10,240
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError)


class Member(NamedTuple):
    """A file: its name with forward slashes, and where its bytes lie in the archive."""

    name: str
    offset: int
    size: int

    @property
    def directory(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def is_image(self) -> bool:
        return self.name.lower().endswith(IMAGE_SUFFIXES)


def open_tar(
    path: Path,
    known: list[str] | None,
    class_depth: int = 1,
    labels: str | Path | None = None,
    label_names: str | Path | None = None,
) -> Source:
    """The images of an archive. ``known``: the names of all classes, if they were given. Raises UserError."""
    with _told(path), path.open("rb") as file:
        files = sorted(members(file, str(path)))
    images = [file for file in files if file.is_image]
    tell_left_out(path, Counter(suffix_of(file.name) for file in files if not file.is_image))
    if not images:
        raise UserError(f"{path} holds no images; {', '.join(IMAGE_SUFFIXES)} are read")
    for one, other in itertools.pairwise(images):
        if one.name == other.name:
            raise UserError(f"{path} holds {printable(one.name)} twice; make the archive anew")
    if labels is not None:
        labels_N, classes = label_by_file([image.name for image in images], known, labels, label_names)
    else:
        images, labels_N, classes = _classify(path, images, class_depth)

    def describe(row: int) -> str:
        return f"{path}/{printable(images[row].name)}"

    def read(row: int) -> bytes:
        _, offset, size = images[row]
        if size > MAX_BYTES:
            raise DamagedSampleError(f"{describe(row)} states {size:,} bytes, the limit is {MAX_BYTES:,}; remove it")
        with _told(path), path.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), size, offset)
        if len(content) < size:
            # Not damage to one image: it was whole when its headers were read, and all that follows is gone too.
            raise UserError(f"{describe(row)} ends early: {path} was cut short meanwhile; copy it again")
        return content

    return Source(labels_N, classes, read, describe)


def _classify(path: Path, images: list[Member], class_depth: int) -> tuple[list[Member], np.ndarray, list[str]]:
    """Images in class directories, labels and class names. Directories at the top that all share are passed over."""
    parts_of = {image.directory: image.directory.split("/") for image in images if image.directory}
    deep = [directory for directory, parts in parts_of.items() if len(parts) >= class_depth]
    if not deep:
        below = "" if class_depth == 1 else f" {class_depth} levels down"
        raise UserError(f"{path}: its images lie in no class directories{below}; give --labels FILE with their classes")
    shared = os.path.commonpath(deep)
    top = min(len(shared.split("/")) if shared else 0, *(len(parts_of[one]) - class_depth for one in deep))
    class_of = {
        directory: "/".join(parts[top : top + class_depth])
        for directory, parts in parts_of.items()
        if len(parts) >= top + class_depth
    }
    taken = [image for image in images if image.directory in class_of]
    if len(taken) < len(images):
        logger.warning("%s: %d images lie in no class directory and are left out", path, len(images) - len(taken))
    return taken, *number_names([class_of[image.directory] for image in taken])


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
            raise
        except tarfile.HeaderError as error:
            raise _RefusedError(
                f"has no sound tar header at byte {at:,} ({error}): damaged or cut short; copy it again"
            ) from None

    def _proc_member(self, archive: Any) -> Any:
        """Tarfile reads extended headers into memory, whatever size they state."""
        if not self.isreg() and not 0 <= self.size <= MAX_EXTENSION:
            raise _RefusedError(
                f"has an extended header of {self.size:,} bytes at byte {archive.offset:,}, the limit is "
                f"{MAX_EXTENSION:,}; make the archive anew"
            )
        return super()._proc_member(archive)  # type: ignore[misc]

    def _refuse_sparse(self, *_: Any) -> Any:
        raise _RefusedError(f"has {printable(self.name)}, a sparse file, which cannot be packed; pack the folder")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


class _Archive(tarfile.TarFile):
    tarinfo = _Header
    encoding = "utf-8"


def members(file: IO[bytes], where: str, start: int = 0, directory: str = "") -> Iterator[Member]:
    """The files of an archive as they lie, without hidden ones; those of tars in it, ``start`` and ``directory``, too.

    Raises UserError for links, devices and sparse files, names that leave the archive or are no UTF-8, sizes that
    do not fit, damaged headers, and what follows the end.
    """
    with _told(where):
        archive = _Archive(fileobj=file)
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # these two would grow with every header
            archive.pax_headers.clear()  # type: ignore[attr-defined]
            name = _plain_name(info)
            # What macOS adds is hidden, among others: ``._n01440764.tar`` is no tar.
            if info.isdir() or any(part.startswith(".") for part in name.split("/")):
                continue
            if not name.lower().endswith(_TARS):
                yield Member(directory + name, start + info.offset_data, info.size)
                continue
            inside = f"{where}/{printable(name)}"
            if directory or not name.lower().endswith(".tar"):
                raise UserError(f"{inside} is compressed, or in a tar within a tar; expand it, or pack it alone")
            nested = archive.extractfile(info)
            assert nested is not None
            yield from members(nested, inside, info.offset_data, name[: -len(".tar")] + "/")
        if file.read(_AFTER_END).strip(b"\0"):
            raise _RefusedError(
                f"goes on behind its end mark at byte {archive.offset:,}; archives that were joined by cat must be "
                "packed one by one, or joined by tar --concatenate"
            )


def _plain_name(info: tarfile.TarInfo) -> str:
    parts = [part for part in info.name.split("/") if part not in ("", ".")]
    if info.size < 0:
        what = f"states {info.size:,} bytes"
    elif info.name.startswith("/") or ".." in parts:
        what = "has a name that leads out of the archive"
    elif "\0" in info.name or any("\udc80" <= letter <= "\udcff" for letter in info.name):
        what = "has a name that is no UTF-8"
    elif not info.isreg() and not info.isdir():
        what = f"is a link or a device (type {info.type!a}), which cannot be packed"
    else:
        return "/".join(parts)
    raise _RefusedError(
        f"has {printable(info.name)}, which {what}; make the archive anew without it, or pack the folder"
    )


@contextlib.contextmanager
def _told(where: object) -> Iterator[None]:
    """Within the block, whatever ``tarfile`` makes of a damaged archive is a UserError that begins with ``where``."""
    try:
        yield
    except UserError:
        raise
    except _RefusedError as refused:
        raise UserError(f"{where} {refused}") from None
    except _TAR_ERRORS as error:
        raise UserError(
            f"{where} cannot be read as a tar ({first_line(error)}): damaged or cut short; copy it again"
        ) from None
