"""``megaclass bench scaling``: what simulated ranks say of a job of many."""

from typing import Any

from megaclass.cli.parsing import make_parser, parse
from megaclass.errors import UserError, lookup


def scaling(words: list[str]) -> None:
    parser = make_parser(
        "megaclass bench scaling ROWS.jsonl [--link nvlink4,100g]",
        "Predict weak scaling from rows of `megaclass bench train -b N --simulate-ranks 1,2,8,64 --output ROWS.jsonl`: "
        "the measured step of one rank, and what it sends at the price of each link; pessimistic with nothing hidden, "
        "optimistic with the backbone's gradients under its backward pass.",
    )
    options_of_scaling(parser)
    options = parse(parser, words)

    from rich.console import Console

    from megaclass.report.scaling import LINKS, weak_scaling
    from megaclass.report.texttable import console
    from megaclass.results.rows import read_rows

    links = [lookup(LINKS, name.strip(), "link") for name in options.link.split(",")]
    sheets = weak_scaling([row for path in options.rows for row in read_rows(path)], links)
    if not sheets:
        raise UserError(
            f"{', '.join(options.rows)}: no training of one rank and of simulated ones with the same work on each; "
            "measure with -b N --simulate-ranks 1,2,8"
        )
    Console().print(console(sheets))


def options_of_scaling(parser: Any) -> None:
    parser.add_argument("rows", nargs="+", metavar="ROWS.jsonl", help="files of rows")
    parser.add_argument(
        "--link",
        type=str,
        default="nvlink4,pcie4,400g,100g,25g,10g",
        metavar="LIST",
        help="between neighbours of the ring: nvlink4, pcie4, 400g, 100g, 25g or 10g (Gbit/s)",
    )
