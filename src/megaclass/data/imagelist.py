"""Images named one by one, in a folder or a zip file: the input of an evaluation."""

import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

from megaclass.data.dataset import DamagedSampleError, Sample, Unlabelled
from megaclass.data.folder import MAX_BYTES, read_file
from megaclass.errors import UserError, first_line


class ImageList(Unlabelled):
    """The images ``names`` (paths with forward slashes, relative to a folder or zip file) as a dataset.

    Reading is safe from several threads.
    """

    def __init__(self, root_or_zip: str | Path, names: Sequence[str]) -> None:
        self.root = Path(root_or_zip)
        self.names = list(names)
        self._archive: zipfile.ZipFile | None = None
        self._lock = threading.Lock()
        if self.root.is_file():
            try:
                self._archive = zipfile.ZipFile(self.root)
            except Exception as error:  # zipfile lets some ten types through
                raise UserError(f"{self.root}: not a readable zip file ({first_line(error)})") from None
        elif not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder or zip file of images")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        """Return image ``index``, still encoded. Raises DamagedSampleError that names what cannot be read."""
        name = self.names[index]
        if self._archive is None:
            return Sample(read_file(self.root / name), 0)
        try:
            with self._lock:  # zipfile of Python 3.12 seeks from where another thread may have left the file
                return Sample(_unzipped(self._archive, name), 0)
        except Exception as error:  # zipfile lets some ten types through
            raise DamagedSampleError(f"{self.describe(index)}: cannot be read ({first_line(error)})") from None

    def describe(self, index: int) -> str:
        return f"{self.root}/{self.names[index]}"


def _unzipped(archive: zipfile.ZipFile, name: str) -> bytes:
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # The other methods cannot be expanded piece by piece, so a small member could fill the memory.
        raise ValueError("neither stored nor deflated; pack it again")
    if member.file_size > MAX_BYTES:
        raise ValueError(f"it states {member.file_size:,} bytes, the limit is {MAX_BYTES:,}")
    with archive.open(member) as file:
        return file.read(member.file_size + 1)  # the one more makes it look at the checksum
