"""Which kind of source a path is."""

from pathlib import Path

from megaclass.data.pack.folder import open_folder
from megaclass.data.pack.npz import open_npz
from megaclass.data.pack.source import Source, SourceOptions
from megaclass.data.pack.table import open_table
from megaclass.data.pack.tar import TAR_SUFFIXES, Scanning, open_tar
from megaclass.errors import UserError

_TAKES = {
    "a folder": {"class_depth", "labels", "label_names"},
    "an .npz": {"where", "unpack_bits"},
    "a table": {"root"},
    "a tar": {"root", "class_depth", "labels", "label_names"},
}


def open_source(
    path: Path, options: SourceOptions, known: list[str] | None, scanning: Scanning | None = None
) -> Source:
    """The images at ``path``. Raises UserError for what is no source, and for options that it does not take."""
    kind = _kind(path)
    for name, value in vars(options).items():
        if value != getattr(SourceOptions, name) and name not in _TAKES[kind]:
            others = " and ".join(other for other, names in _TAKES.items() if name in names)
            raise UserError(f"{path} is {kind}; {name} is for {others}, leave it out")
    if options.class_depth < 1:
        raise UserError(
            f"class_depth: {options.class_depth} is too few; 1 takes the sub-directories as classes"
        )
    if options.label_names is not None and options.labels is None:
        raise UserError("label_names says what the numbers of labels mean; give labels too, or leave it out")
    if kind == "a folder":
        return open_folder(path, options, known)
    if kind == "an .npz":
        return open_npz(path, options.where, options.unpack_bits)
    if kind == "a table":
        return open_table(path, options.root)
    return open_tar(path, options, known, scanning)


def _kind(path: Path) -> str:
    name = path.name.lower()
    if path.is_dir():
        return "a folder"
    if path.is_file():
        for kind, suffixes in (("an .npz", ".npz"), ("a table", (".csv", ".tsv")), ("a tar", TAR_SUFFIXES)):
            if name.endswith(suffixes):
                return kind
    takes = "an image folder, or an .npz, .csv, .tsv or tar file"
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; name {takes}")
    raise UserError(f"{path} is not {takes}; if it is an archive, unpack it, and name the folder")
