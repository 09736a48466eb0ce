"""Verbs about data sets, a module each."""

from megaclass.cli.parsing import Parts, run_part

PARTS: Parts = {
    "pack": "images of a folder, a table, a tar or an .npz into record files",
    "info": "what a set holds: counts, classes, sizes, and a picture of samples",
    "check": "look at every image: damaged, duplicate and mislabelled ones",
    "shuffle": "a record set in a random order",
    "split": "some classes apart from the others, to verify on",
    "merge": "several sets as one record set",
    "stage": "copy a set to a local disk, verified, before training",
    "pairs": "pairs for verification, as a list or, with their images, as a .bin file",
}


def data(words: list[str]) -> int | None:
    return run_part("data", "data command", PARTS, words)
