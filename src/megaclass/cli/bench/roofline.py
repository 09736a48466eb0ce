"""``megaclass bench roofline``: how fast a backbone could be."""

from typing import Any

from megaclass.cli.parsing import make_parser, parse


def roofline(words: list[str]) -> None:
    parser = make_parser(
        "megaclass bench roofline [--backbone iresnet50,resnet50] [-b 64] [--dtype bfloat16] [--machine h100] [...]",
        "How fast backbones could train and run at most, by what their layers compute and move: operations, bytes and "
        "the least time of a step by stage and by kind of layer. Only the peaks of this machine are measured, and not "
        "where others are named or given. LIST is one value or several with commas between.",
    )
    options_of_roofline(parser)
    options = parse(parser, words)

    from rich.console import Console

    from megaclass.bench.roofline.plan import bounds, reached_rows, row_of
    from megaclass.report.roofline import by_kind, by_stage, reached_sheet, speeds
    from megaclass.report.texttable import console
    from megaclass.results.rows import RowWriter

    found = bounds(options)
    screen = Console()
    with RowWriter(options.output) as writer:
        for one in found:
            screen.print(console([by_stage(one), by_kind(one)]))
            writer.write(row_of(one))
        screen.print(console([speeds(found)]))
    if options.rows:
        screen.print(console([reached_sheet(reached_rows(options.rows, found[0].peaks))]))


def options_of_roofline(parser: Any) -> None:
    lists = {
        ("--backbone",): ("iresnet50,resnet50", "backbones"),
        ("--image-size",): ("0", "pixels; 0: the backbone's own"),
        ("-b", "--batch-size"): ("64", "images of a step on a device"),
        ("--dtype", "--precision"): ("bfloat16", "of activations: float32, tf32, float16 or bfloat16"),
    }
    for flags, (default, text) in lists.items():
        parser.add_argument(*flags, type=str, default=default, metavar="LIST", help=text)
    texts = {
        "machine": (
            "",
            "whose peaks: h100, h100-measured, h200, a100 or v100; default: this one's, measured",
        ),
        "device": ("auto", "that is measured: auto, cpu or cuda"),
        "rows": (
            "",
            "JSON lines file of `bench train` or `bench infer`: what part of its bound each row reaches",
        ),
        "output": ("", "JSON lines file to which a row is appended for each bound"),
    }
    for name, (default, text) in texts.items():
        parser.add_argument(f"--{name}", type=str, default=default, help=text)
    numbers = {
        "peak-tflops": "10^12 operations a second of large products, instead of a machine; with --bandwidth-gbs",
        "bandwidth-gbs": "10^9 bytes a second that memory reads and writes",
    }
    for name, text in numbers.items():
        parser.add_argument(f"--{name}", type=float, default=0.0, help=text)
    parser.add_argument(
        "--threads", type=int, default=0, help="on a CPU; 0: OMP_NUM_THREADS, or all its cores"
    )
