"""``megaclass bench head``: steps of the head."""

from typing import Any

from megaclass.cli.bench.sweep import options_of_sweep, show
from megaclass.cli.parsing import make_parser, parse


def head(words: list[str]) -> None:
    parser = make_parser(
        "megaclass bench head [--num-classes 100K,1M] [--sample-rate 1,0.1] [--output FILE.jsonl] [...]",
        "Measure whole steps of the head: forward, backward to the embeddings, update. LIST is one value or "
        "several with commas between; every combination is measured, each in processes of its own.",
    )
    options_of_head(parser)
    options = parse(parser, words)

    from megaclass.bench.head.plan import planned
    from megaclass.report.head import comparisons, head_tables

    show(planned(options), options, comparisons, head_tables)


def options_of_head(parser: Any) -> None:
    """The options of ``bench head``."""
    lists = {
        "num-classes": ("100K", "classes of the whole job; K, M and B are understood"),
        "embedding-dim": ("512", "columns of an embedding"),
        "batch-size": ("128", "rows of the global batch: what every shard of the classes sees"),
        "sample-rate": ("1", "fraction of the classes scored in a step"),
        "precision": ("fp32", "operands of products: fp32, tf32 or bf16"),
        "storage": ("fp32", "centres and momentum: fp32, bf16 or int8_rowwise, which keeps no momentum"),
        "world-size": ("1", "processes, each with its share of classes, batch, and cores or GPUs"),
    }
    for name, (default, text) in lists.items():
        parser.add_argument(f"--{name}", type=str, default=default, metavar="LIST", help=text)
    others = {
        "simulate-ranks": (1, "one process does one rank's share of N: 1/N of the classes, the whole batch"),
        "device": ("auto", "auto, cpu or cuda"),
        "threads": (0, "of each process on a CPU; 0: its share of the cores"),
        "steps": (20, "timed steps"),
        "warmup": (3, "steps before them that are not timed"),
        "margin": ("arcface", "arcface or cosface"),
        "kernels": ("auto", "auto, triton or torch"),
        "seed": (0, "of embeddings, labels and centres"),
        "peer": ("", "another implementation that takes turns with ours, step by step: arcface_torch"),
        "peer-path": ("", "directory with the peer's code, which is not changed"),
        "peer-malloc": (
            "both",
            "the peer's allocator on a CPU: tuned to keep freed memory, untuned, or both",
        ),
    }
    for name, (value, text) in others.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
    options_of_sweep(parser)
