"""Verbs about data sets, a module each."""

from megaclass.cli.parsing import Parts, run_part

PARTS: Parts = {
    "pack": "images of a folder or an .npz into record files",
}


def data(words: list[str]) -> None:
    run_part("data", "data command", PARTS, words)
