"""An image folder as a source."""

from pathlib import Path

from megaclass.data.folder import FolderDataset
from megaclass.data.packing.source import Source, digest, stamp


def open_folder(root: Path, class_depth: int) -> Source:
    """The images of a folder with a directory a class. Raises UserError."""
    folder = FolderDataset(root, class_depth)
    return Source(
        kind="folder",
        labels=folder.labels(),
        classes=folder.classes,
        read=lambda row: folder.read(row).encoded,
        describe=folder.describe,
        identity=lambda: digest(
            f"{folder.path(row).relative_to(root)} {stamp(folder.path(row))}" for row in range(len(folder))
        ),
    )
