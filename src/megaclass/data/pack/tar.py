"""A tar as a source: class directories, class tars within a tar, or flat images with labels given apart.

A tar within a tar counts as a directory of its name, so that ``n01440764.tar`` with ``n01440764_18.JPEG`` in it is
``n01440764/n01440764_18.JPEG``. The names of all members are read first, header by header: only then it is known how
many classes there are and which number each has. Memory: some 150 bytes an image.
"""

import array
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.folder import IMAGE_SUFFIXES
from megaclass.data.imagelist import MAX_BYTES
from megaclass.data.pack.labelfile import class_names
from megaclass.data.pack.source import Source, SourceOptions, digest, stamp
from megaclass.data.pack.tarwalk import Archive, Member, shown, walk
from megaclass.errors import UserError

logger = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_NOTE_EVERY = 1000
Scanning = Callable[[int, int], None]


def open_tar(
    path: Path, options: SourceOptions, known: list[str] | None, scanning: Scanning | None = None
) -> Source:
    """The images of the archive at ``path``; see ``pack``. Raises UserError.

    ``known``: the names of all classes, if they were given. ``scanning`` is called with (bytes passed, bytes in
    all) while names are read.
    """
    archive = Archive(path)
    try:
        contents = _Contents(archive, scanning)
        contents.require_images()
        contents.select(options.root)
        if not archive.compressed:
            contents.sort()  # as packing the folder would have them; a compressed one is read as it lies
        contents.refuse_twins()
        if options.labels is not None:
            names = class_names(options.labels, contents.names, options.label_names, known)
            classes = sorted(set(names))
            number_of = {name: number for number, name in enumerate(classes)}
            labels = np.fromiter((number_of[name] for name in names), np.int64, len(names))
        else:
            labels, classes = contents.classify(options.class_depth)
    except BaseException:
        archive.close()
        raise

    def describe(row: int) -> str:
        return f"{path}/{shown(contents.names[row])}"

    def read(row: int) -> bytes:
        size = contents.sizes[row]
        if size > MAX_BYTES:
            raise DamagedSampleError(
                f"{describe(row)} states {size:,} bytes, the limit is {MAX_BYTES:,}; remove it"
            )
        content = archive.read(contents.offsets[row], size)
        if len(content) < size:
            # Not damage to one image: it was whole when its headers were read, and all that follows is gone too.
            raise UserError(f"{describe(row)} ends early: {path} was cut short meanwhile; copy it again")
        return content

    return Source(
        kind="tar",
        labels=labels,
        classes=classes,
        read=read,
        describe=describe,
        identity=lambda: digest([stamp(path), *contents.names]),
        in_order=archive.compressed,
        close=archive.close,
    )


class _Contents:
    """The images of an archive: names and where their bytes lie, row by row."""

    def __init__(self, archive: Archive, scanning: Scanning | None) -> None:
        self.path = archive.path
        self.names: list[str] = []
        self.offsets: array.array[int] = array.array("q")
        self.sizes: array.array[int] = array.array("q")
        self._directories: set[str] = set()
        for member in _members(archive):
            if member.is_dir:
                self._directories.add(member.name)
            elif member.name.lower().endswith(IMAGE_SUFFIXES):
                self.names.append(member.name)
                self.offsets.append(member.offset)
                self.sizes.append(member.size)
                if scanning is not None and len(self.names) % _NOTE_EVERY == 0:
                    scanning(archive.position if archive.compressed else member.offset, archive.file_bytes)

    def require_images(self) -> None:
        if not self.names:
            raise UserError(f"{self.path} holds no images; {', '.join(IMAGE_SUFFIXES)} are read")

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
        self._warn_of_empty_classes(classes, deep[0][:top], class_depth)
        number_of = {name: number for number, name in enumerate(classes)}
        labels = (number_of[class_of[name.rpartition("/")[0]]] for name in self.names)
        return np.fromiter(labels, np.int64, len(self.names)), classes

    def _warn_of_empty_classes(self, classes: list[str], top: list[str], class_depth: int) -> None:
        empty = set()
        for directory in self._directories:
            parts = directory.split("/")
            if len(parts) == len(top) + class_depth and parts[: len(top)] == top:
                empty.add("/".join(parts[len(top) :]))
        for name in sorted(empty - set(classes)):
            logger.warning("%s: the class %s holds no images", self.path, shown(name))

    def _take(self, rows: list[int]) -> None:
        self.names = [self.names[row] for row in rows]
        self.offsets = array.array("q", (self.offsets[row] for row in rows))
        self.sizes = array.array("q", (self.sizes[row] for row in rows))


def _members(archive: Archive) -> Iterator[Member]:
    """All members that are not hidden, those of tars within the tar by their full names."""
    for member in walk(archive):
        if _is_hidden(member):
            continue
        low = member.name.lower()
        if member.is_dir or not low.endswith(TAR_SUFFIXES):
            yield member
            continue
        where = f"{archive.path}/{shown(member.name)}"
        if not low.endswith(".tar"):
            raise UserError(
                f"{where} is compressed; a tar within a tar must not be: expand it, or pack it alone"
            )
        directory = member.name[: -len(".tar")]
        yield Member(directory, member.offset, 0, is_dir=True)
        for inner in walk(archive, member):
            if _is_hidden(inner):
                continue
            if not inner.is_dir and inner.name.lower().endswith(TAR_SUFFIXES):
                raise UserError(
                    f"{where}/{shown(inner.name)} is a tar within a tar within a tar; tars may be nested once: pack "
                    f"{shown(member.name)} alone"
                )
            yield inner._replace(name=f"{directory}/{inner.name}")


def _is_hidden(member: Member) -> bool:
    """What macOS adds is, among others: ``._n01440764.tar`` is no tar."""
    return any(part.startswith(".") for part in member.name.split("/"))
