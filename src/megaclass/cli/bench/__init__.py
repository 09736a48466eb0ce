"""Verbs that measure, a module each."""

from megaclass.cli.parsing import Parts, run_part

PARTS: Parts = {
    "head": "whole steps of the head, beside arcface_torch's",
    "loader": "images to batches, by stage, beside bare decode, DALI and Pillow",
}


def bench(words: list[str]) -> None:
    run_part("bench", "benchmark", PARTS, words)
