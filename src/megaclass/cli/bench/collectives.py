"""``megaclass bench collectives``: what processes exchange."""

from typing import Any

from megaclass.cli.bench.sweep import options_of_sweep, show
from megaclass.cli.parsing import make_parser, parse


def collectives(words: list[str]) -> None:
    parser = make_parser(
        "megaclass bench collectives [--op LIST] [--size 4K,64M] [-n 2] [--output FILE.jsonl] [...]",
        "Measure collectives of torch.distributed by the size of the message: gloo on a CPU, nccl on CUDA. LIST is "
        "one value or several with commas between; every combination is measured in processes of its own, and "
        "every result is checked. Sizes and bandwidths are those of NVIDIA's nccl-tests.",
    )
    options_of_collectives(parser)
    options = parse(parser, words)

    from megaclass.bench.collectives.plan import planned
    from megaclass.report.collectives import collective_tables

    show(planned(options), options, lambda rows: [], collective_tables)


def options_of_collectives(parser: Any) -> None:
    """The options of ``bench collectives``."""
    parser.add_argument(
        "--op",
        type=str,
        default="all_reduce,all_gather,reduce_scatter,broadcast",
        metavar="LIST",
        help="operations",
    )
    parser.add_argument(
        "--size",
        type=str,
        default="",
        metavar="LIST",
        help="bytes of the message, K, M and G being powers of 1024: all that a rank holds when it is done, or that "
        "it sends (reduce_scatter); default 4K to 64M, on CUDA to 1G, by fours",
    )
    parser.add_argument(
        "-n",
        "--world-size",
        type=str,
        default="",
        metavar="LIST",
        help="processes; default 2 on a CPU, all GPUs on CUDA",
    )
    others = {
        "dtype": ("float32", "float32, bfloat16 or float16"),
        "steps": (20, "timed turns, each one call or as many as take 20 ms"),
        "warmup": (3, "turns before them that are not timed"),
        "device": ("auto", "auto, cpu or cuda"),
        "threads": (0, "of each process on a CPU; 0: its share of the cores"),
        "seed": (0, "of the messages"),
    }
    for name, (value, text) in others.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
    options_of_sweep(parser)
