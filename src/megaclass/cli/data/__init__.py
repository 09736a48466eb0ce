"""``megaclass data``: verbs about data sets. ``read``, ``write`` and ``align`` have a function for each."""

import importlib
from collections.abc import Callable

from megaclass.errors import UserError, lookup

_VERBS = {
    "align": ("align", "faces of photographs, found and set upright as face models see them"),
    "pack": ("write", "images of a folder, a table, a tar or an .npz into record files"),
    "info": ("read", "what a set holds: counts, classes, sizes, and a picture of samples"),
    "check": ("read", "what is wrong with it: damaged, duplicate and mislabelled images"),
    "suspects": (
        "suspects",
        "images whose labels look wrong to a trained model, as a list for pack --exclude",
    ),
    "split": ("write", "some classes apart from the others, to verify on"),
    "stage": ("write", "a verified copy on a local disk, to train from"),
    "pairs": ("read", "pairs for verification, as a list or, with their images, as a .bin file"),
}


def data(words: list[str]) -> int | None:
    """Run the verb that the first word names. Returns its exit status, None being 0."""
    if words[:1] in (["-h"], ["--help"], ["help"]):
        for name, (_, text) in _VERBS.items():
            print(f"  megaclass data {name:8}  {text}")
        print("\n`megaclass data pack --help` says more, as for each of them.")
        return None
    if not words:
        raise UserError(f"which data command? known: {', '.join(_VERBS)}")
    module, _ = lookup(_VERBS, words[0], "data command")
    verb: Callable[[list[str]], int | None] = getattr(
        importlib.import_module(f"megaclass.cli.data.{module}"), words[0]
    )
    return verb(words[1:])
