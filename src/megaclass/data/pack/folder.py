"""An image folder as a source."""

import logging
from pathlib import Path

from megaclass.data.folder import FolderDataset
from megaclass.data.pack.source import Source, digest, stamp

logger = logging.getLogger(__name__)


def open_folder(root: Path, class_depth: int) -> Source:
    """The images of a folder with a directory a class. Raises UserError."""
    folder = FolderDataset(root, class_depth)
    _warn_of_deep_images(folder, class_depth)
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


def _warn_of_deep_images(folder: FolderDataset, class_depth: int) -> None:
    """Warn where no class has an image of its own, as where train/ and val/ were taken for classes."""
    if any(
        len(folder.path(row).relative_to(folder.root).parts) <= class_depth + 1 for row in range(len(folder))
    ):
        return
    logger.warning(
        "%s: no image lies in a class directory itself, all lie deeper, %s the first; did you mean %s, or "
        "--class-depth %d?",
        folder.root,
        folder.path(0),
        folder.root / ("train" if "train" in folder.classes else folder.classes[0]),
        class_depth + 1,
    )
