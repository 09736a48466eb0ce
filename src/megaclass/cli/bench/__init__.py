"""Verbs that measure, a module each."""

from megaclass.cli.parsing import Parts, run_part

PARTS: Parts = {
    "suite": "all cases of a published report, as published or scaled to this machine",
    "head": "whole steps of the head, beside arcface_torch's",
    "train": "whole training steps, by devices, batch, precision and recipe",
    "infer": "latency and throughput of inference, by batch, precision and engine",
    "loader": "images to batches, by stage, beside bare decode, DALI and Pillow",
    "collectives": "what processes exchange, by operation and size, on gloo and nccl",
    "roofline": "how fast a backbone could be at most: operations, bytes and time by layer; what rows reach of it",
    "scaling": "weak scaling to many ranks, predicted from rows of simulated ones and the price of links",
    "stability": "a recipe trained with several seeds: mean and spread of its metric, time to train, curves",
}


def bench(words: list[str]) -> int | None:
    return run_part("bench", "benchmark", PARTS, words)
