"""Open whatever lies under a path."""

from pathlib import Path

from megaclass.data.dataset import Dataset
from megaclass.data.folder import FolderDataset
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError


def open_dataset(path: str | Path) -> Dataset:
    """A record set (a ``.rec`` file, or a directory with one) or a directory of class directories."""
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such file or directory; give a record set or a directory of class directories"
        )
    if path.suffix == ".rec" or any(path.glob("*.rec")):
        return RecordDataset(path)
    return FolderDataset(path)
