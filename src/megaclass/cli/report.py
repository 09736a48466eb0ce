"""``megaclass report``: rows of benchmarks as pages that people publish."""

from pathlib import Path
from typing import Any

from megaclass.cli.common import tell
from megaclass.cli.parsing import make_parser, parse
from megaclass.results import published


def report(words: list[str]) -> None:
    parser = make_parser(
        "megaclass report DIR|FILES [--against NAME ...] [--output DIR]",
        "Write report.html (one page, no network), report.md and report.csv from rows of benchmarks: tables beside "
        "the published ones, curves, machines, and every number with a link to the raw row that it is from.",
    )
    add: Any = parser.add_argument
    against = (
        f"published reports ({', '.join(published.names())}); those of the rows' suites are always there"
    )
    add("rows", nargs="+", metavar="DIR|FILES", help="files of rows (.jsonl), or directories of them")
    add("--against", nargs="+", default=[], metavar="NAME", help=against)
    add("--output", default="", help="directory to write to; without it that of the rows")
    options = parse(parser, words)

    from megaclass.report.page import write_page

    first = Path(options.rows[0])
    directory = Path(options.output) if options.output else first if first.is_dir() else first.parent
    for path in write_page(options.rows, directory, options.against):
        tell(str(path))
