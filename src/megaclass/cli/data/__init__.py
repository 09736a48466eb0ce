"""Verbs about data sets, a module each."""

from megaclass.cli.parsing import Parts, run_part

PARTS: Parts = {
    "pack": "images of a folder, a table, a tar or an .npz into record files",
    "info": "what a set holds: counts, classes, sizes, and a picture of samples",
    "check": "what is wrong with it: damaged, duplicate and mislabelled images",
    "shuffle": "a record set in a random order",
    "split": "some classes apart from the others, to verify on",
    "merge": "several sets as one record set",
    "stage": "a verified copy on a local disk, to train from",
    "pairs": "pairs for verification, as a list or, with their images, as a .bin file",
}


def data(words: list[str]) -> int | None:
    return run_part("data", "data command", PARTS, words)
