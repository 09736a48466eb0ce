"""A folder as a source: with a directory a class, or flat beside a file of labels."""

import logging
from pathlib import Path

from megaclass.data.folder import FolderDataset, images_under, read_file
from megaclass.data.pack.labels import label_by_file
from megaclass.data.pack.source import Source, SourceOptions
from megaclass.errors import UserError

logger = logging.getLogger(__name__)

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def open_folder(root: Path, options: SourceOptions, known: list[str] | None) -> Source:
    """The images of a folder. ``known``: the names of all classes, if they were given. Raises UserError."""
    if options.labels is not None:
        return _open_flat(root, options, known)
    folder = FolderDataset(root, options.class_depth)
    _warn_of_splits(folder, options.class_depth)
    return Source(
        labels=folder.labels(),
        classes=folder.classes,
        read=lambda row: folder.read(row).encoded,
        describe=folder.describe,
    )


def _open_flat(root: Path, options: SourceOptions, known: list[str] | None) -> Source:
    names = images_under(root)
    if not names:
        raise UserError(f"{root} holds no images")
    labels, classes = label_by_file(names, options, known)
    return Source(
        labels=labels,
        classes=classes,
        read=lambda row: read_file(root / names[row]),
        describe=lambda row: str(root / names[row]),
    )


def _warn_of_splits(folder: FolderDataset, class_depth: int) -> None:
    """Warn where train/ and val/, with class directories in them, were taken for classes."""
    parts = [name for name in folder.classes if name.lower() in _SPLITS]
    if class_depth > 1 or not parts:
        return
    if all(len(folder.path(row).relative_to(folder.root).parts) > 2 for row in range(len(folder))):
        logger.warning(
            "%s: no image lies in a class directory itself, all lie deeper, %s the first; did you mean %s, or "
            "--class-depth 2?",
            folder.root,
            folder.path(0),
            folder.root / ("train" if "train" in parts else parts[0]),
        )
