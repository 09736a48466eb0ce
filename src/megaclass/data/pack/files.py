"""Files as a source: a folder with a directory a class, one beside a file of labels, or those that a table names."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megaclass.data.folder import IMAGE_SUFFIXES, FolderDataset, images_under, read_file
from megaclass.data.pack.labels import are_numbers, label_by_file, number_names, read_table
from megaclass.data.pack.source import Source, SourceOptions
from megaclass.errors import UserError

logger = logging.getLogger(__name__)

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def open_folder(root: Path, options: SourceOptions, known: list[str] | None) -> Source:
    """The images of a folder. ``known``: the names of all classes, if they were given. Raises UserError."""
    if options.labels is None:
        folder = FolderDataset(root, options.class_depth)
        _warn_of_splits(folder, options.class_depth)
        return Source(folder.labels(), folder.classes, lambda row: folder.read(row).encoded, folder.describe)
    names = images_under(root)
    if not names:
        raise UserError(f"{root} holds no images")
    return _of_files(root, names, *label_by_file(names, options, known))


def open_table(path: Path, options: SourceOptions, _known: list[str] | None) -> Source:
    """The images that a ``.csv`` or ``.tsv`` names; paths are relative to the root of options, or else to the table.

    Labels are numbers if all are written as whole numbers. Raises UserError.
    """
    base = Path(options.root) if options.root is not None else path.parent
    if not base.is_dir():
        raise UserError(f"--root: {base} is not a directory; name the one that the paths of {path} begin at")
    rows = read_table(
        path, "source", lambda name: name.lower().endswith(IMAGE_SUFFIXES) or (base / name).is_file()
    )
    if not rows:
        raise UserError(f"{path} names no images; it needs a line 'path,label' for each")
    names = [label for _, _, label in rows]
    files = [file for _, file, _ in rows]
    if are_numbers(names):
        return _of_files(base, files, np.array([int(name) for name in names], np.int64), None)
    return _of_files(base, files, *number_names(names))


def _of_files(root: Path, names: Sequence[str], labels: np.ndarray, classes: list[str] | None) -> Source:
    return Source(
        labels,
        classes,
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
