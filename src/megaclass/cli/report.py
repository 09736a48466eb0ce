"""``megaclass report``: rows of benchmarks as pages that people publish."""

from pathlib import Path
from typing import Any

from megaclass.cli.common import tell
from megaclass.cli.parsing import make_parser, new_file, parse
from megaclass.errors import UserError
from megaclass.files import whole_file
from megaclass.results import published


def report(words: list[str]) -> None:
    parser = make_parser(
        "megaclass report DIR|FILES [--against NAME ...] [--output DIR] | RUN --mllog FILE [--submission ...]",
        "Write report.html (one page, no network), report.md and report.csv from rows of benchmarks: tables beside "
        "the published ones, curves, machines, and every number with a link to the raw row that it is from.",
        {"rows...": "files of rows (.jsonl), or directories of them"},
        {
            "output": ("", "directory to write to; without it that of the rows"),
            "mllog": ("", "of a run directory: write the log of MLPerf Training to this new file"),
        },
    )
    against = f"published reports ({', '.join(published.names())}); those of the rows' suites are always there"
    submission = "what that log cannot know: org, status, .."
    parser.add_argument("--against", nargs="+", default=[], metavar="NAME", help=against)
    parser.add_argument("--submission", nargs="+", default=[], metavar="KEY=VALUE", help=submission)
    options = parse(parser, words)
    if options.mllog:
        _write_mllog(options)
        return

    from megaclass.report.page import write_page

    first = Path(options.rows[0])
    directory = Path(options.output) if options.output else first if first.is_dir() else first.parent
    for path in write_page(options.rows, directory, options.against):
        tell(str(path))


def _write_mllog(options: Any) -> None:
    from megaclass.report import mlperf

    if len(options.rows) > 1 or options.against or options.output:
        raise UserError("--mllog: of one run directory, and with --submission alone")
    path = new_file(options.mllog, "--mllog")
    lines, lacks = mlperf.mllog(Path(options.rows[0]), options.submission)
    with whole_file("--mllog", path) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    tell(f"{path}: {len(lines)} lines")
    for lack in lacks:
        tell(f"not a result of MLPerf's: {lack}")
