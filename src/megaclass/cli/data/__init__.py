"""``megaclass data``: verbs about data sets. ``read``, ``write`` and ``align`` have a function for each."""

import importlib
from collections.abc import Callable

from megaclass.cli.parsing import verb_asked

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
    name = verb_asked("data", {name: text for name, (_, text) in _VERBS.items()}, words)
    if not name:
        return None
    module = importlib.import_module(f"megaclass.cli.data.{_VERBS[name][0]}")
    verb: Callable[[list[str]], int | None] = getattr(module, name)
    return verb(words[1:])
