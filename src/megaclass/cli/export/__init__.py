"""Verbs that write other people's formats, a module each."""

from megaclass.cli.parsing import Parts, run_part

PARTS: Parts = {
    "arcface_torch": "a run, or checkpoints of arcface_torch, as checkpoints of arcface_torch for N processes",
}


def export(words: list[str]) -> None:
    run_part("export", "format", PARTS, words)
