"""The members of a tar archive, header by header.

Python's tarfile finds members too, but ends without a word at a header that is damaged, reads an extended header of
any stated size into memory, and fills holes of sparse files. An archive from elsewhere that is short by half must
not become a record set, so headers are walked here: every irregularity is an error that names the archive and the
place. What 512 bytes mean is still left to ``tarfile.TarInfo.frombuf``. Nothing is ever written by a member's name.

The formats are ustar, GNU (long names, large numbers) and pax.
"""

import bz2
import gzip
import lzma
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from megaclass.data.dataset import first_line
from megaclass.errors import UserError

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENSION = 1 << 20  # bytes of a long name or a pax header; names end at some 4,096
_AFTER_END = 1 << 16  # bytes looked at behind an end: archives are padded to 10,240
_MAX_SIZE = 1 << 60  # beyond any file system
_NUL_BLOCK = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_UNPACK_ERRORS = (OSError, EOFError, ValueError, struct.error, zlib.error, lzma.LZMAError)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}

_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_VOLUME_LABEL = b"V"
_SPARSE = "GNU.sparse"


class Member(NamedTuple):
    """A file or directory in an archive: its name with forward slashes, and where its bytes lie."""

    name: str
    offset: int
    size: int
    is_dir: bool


class Archive:
    """The bytes of a tar file, those of a compressed one (gzip, bzip2, xz) as they are once expanded.

    A compressed one is expanded from its beginning, again for each step back: read it forwards.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file_bytes = path.stat().st_size
        try:
            self._raw = path.open("rb")
            start = self._raw.read(6)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; mend that and try again") from None
        opener = next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
        self.size = self.file_bytes if opener is None else None  # None: not known before its end is reached
        self._raw.seek(0)
        self._expanded: IO[bytes] | None = None if opener is None else opener(self._raw)  # type: ignore[operator]

    @property
    def compressed(self) -> bool:
        return self._expanded is not None

    @property
    def position(self) -> int:
        """Bytes of the file that were read, for whom a compressed one's progress is shown."""
        return self._raw.tell()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from ``offset`` on, fewer where the archive ends. From several threads only if not compressed."""
        try:
            if self._expanded is None:
                return os.pread(self._raw.fileno(), size, offset)
            self._expanded.seek(offset)
            return self._expanded.read(size)
        except _UNPACK_ERRORS as error:
            raise UserError(f"{self.path} cannot be read: {first_line(error)}; copy it again") from None

    def close(self) -> None:
        if self._expanded is not None:
            self._expanded.close()
        self._raw.close()


def walk(archive: Archive, inside: Member | None = None) -> Iterator[Member]:
    """The files and directories of ``archive``, or of the tar that is its member ``inside``, as they lie.

    Raises UserError for links, devices and sparse files, names that leave the archive or are no UTF-8, sizes that
    do not fit, damaged headers and a missing end.
    """
    at = inside.offset if inside else 0
    stop = inside.offset + inside.size if inside else archive.size
    where = f"{archive.path}/{inside.name}" if inside else str(archive.path)
    extended: dict[str, str] = {}  # what extended headers say of the next member
    while True:
        header = archive.read(at, BLOCK) if stop is None or at + BLOCK <= stop else b""
        if len(header) < BLOCK:
            raise UserError(
                f"{where} ends at byte {at:,} without an end mark; it was cut short: copy it again"
            )
        if header == _NUL_BLOCK:
            _check_end(archive, where, at, stop)
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise UserError(
                f"{where} has no sound tar header at byte {at:,} ({first_line(error)}); copy it again"
            ) from None
        at += BLOCK
        size = _stated_size(info, extended, where)
        if not 0 <= size <= _MAX_SIZE or (stop is not None and at + size > stop):
            raise UserError(
                f"{where}: {shown(info.name)} states {size:,} bytes, more than follow; it was cut short: copy it again"
            )
        if info.type in _EXTENSIONS:
            extended |= _extension(archive, info, at, where)
        elif info.type != tarfile.XGLTYPE and info.type != _VOLUME_LABEL:
            yield _member(info, extended, at, size, where)
            extended = {}
        at += -(-size // BLOCK) * BLOCK


def shown(name: str) -> str:
    """A member's name for a message: whatever would not print in one line is escaped."""
    return name if name.isprintable() else ascii(name)


def _stated_size(info: tarfile.TarInfo, extended: dict[str, str], where: str) -> int:
    if info.isdir():
        return 0  # old archives state one, and no bytes follow
    if info.type in _EXTENSIONS or "size" not in extended:
        return info.size
    digits = extended["size"]
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise UserError(f"{where}: {shown(info.name)} states a size of {digits[:20]!a} bytes; copy it again")
    return int(digits)


def _extension(archive: Archive, info: tarfile.TarInfo, at: int, where: str) -> dict[str, str]:
    """What an extended header says of ``path``, ``size`` and, without a value, ``_SPARSE``: all else is dropped."""
    if info.size > MAX_EXTENSION:
        raise UserError(
            f"{where} has an extended header of {info.size:,} bytes at byte {at:,}, the limit is "
            f"{MAX_EXTENSION:,}; make the archive anew"
        )
    content = archive.read(at, info.size)
    if len(content) < info.size:
        raise UserError(f"{where} ends in a header at byte {at:,}; it was cut short: copy it again")
    if info.type == tarfile.GNUTYPE_LONGLINK:
        return {}
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    records = {}
    start, stop = 0, len(content.rstrip(b"\0"))
    while start < stop:
        # "<length of all this> <key>=<value>\n"
        blank = content.find(b" ", start, start + 8)
        length = content[start : max(start, blank)]
        end = start + int(length) if length.isdigit() else 0
        key, equals, value = content[blank + 1 : max(0, end - 1)].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            raise UserError(f"{where} has a damaged extended header at byte {at:,}; copy it again")
        if key in (b"path", b"size"):
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(_SPARSE.encode()):
            records[_SPARSE] = ""
        start = end
    return records


def _member(info: tarfile.TarInfo, extended: dict[str, str], at: int, size: int, where: str) -> Member:
    name = extended.get("path", info.name)
    kind = _KINDS.get(tarfile.GNUTYPE_SPARSE if _SPARSE in extended else info.type)
    if kind is None and not (info.isreg() or info.isdir()):
        kind = f"of the type {info.type!a}"
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        what = "has a name that leads out of the archive"
    elif "\0" in name or any("\udc80" <= letter <= "\udcff" for letter in name):
        what = "has a name that is no UTF-8"
    elif kind is not None:
        what = f"is {kind}, which cannot be packed"
    else:
        return Member("/".join(parts), at, size, info.isdir())
    raise UserError(f"{where}: {shown(name)} {what}; make the archive anew without it, or pack the folder")


def _check_end(archive: Archive, where: str, at: int, stop: int | None) -> None:
    padding = archive.read(at, _AFTER_END if stop is None else min(_AFTER_END, stop - at))
    if padding.strip(b"\0"):
        raise UserError(
            f"{where} goes on behind its end mark at byte {at:,}; archives that were joined by cat must be packed one "
            "by one, or joined by tar --concatenate"
        )
