"""What verbs that read and write files share: options, a progress bar, and rows said of images."""

import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from megaclass.cli.parsing import Options, make_parser, parse
from megaclass.errors import UserError, printable
from megaclass.files import whole_file

SET = "record set, WebDataset tars or image folder, here or at an address (s3://..); several with ':' between them"
OUTPUT = "directory for the record set; must not hold one"

ROW_FORMATS = (".json", ".jsonl", ".csv")
Rows = list[dict[str, Any]]
"""What is said of an image."""


def tell(line: str, file: TextIO | None = None) -> None:
    """Print a line: file names in it may hold what a terminal would obey."""
    print(printable(line), file=file)


def read_options(words: list[str], usage: str, text: str, positional: Mapping[str, str], options: Options) -> Any:
    """The words parsed, see :func:`megaclass.cli.parsing.make_parser`. Raises UserError for a negative number."""
    found = parse(make_parser(usage, text, positional, options), words)
    for name, value in vars(found).items():
        if type(value) is int and value < 0:
            raise UserError(f"--{name.replace('_', '-')}: {value} is below 0")
    return found


@contextlib.contextmanager
def progress_bar(
    doing: str, interrupted: str, of_bytes: bool = False, shown: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """Yields ``show(done, total)``. The bar is on standard error, where that is a terminal, and goes at the end.

    ``interrupted``: what to tell a user who stops the work: what is left of it.
    """
    from rich import progress
    from rich.console import Console

    counts = progress.DownloadColumn() if of_bytes else progress.MofNCompleteColumn()
    columns = ("{task.description}", progress.BarColumn(), counts, progress.TimeRemainingColumn())
    console = Console(stderr=True)
    try:
        with progress.Progress(
            *columns, console=console, transient=True, disable=not (shown and sys.stderr.isatty())
        ) as bar:
            task = bar.add_task(doing, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted) from None


@contextlib.contextmanager
def row_writer(
    output: Path | None, columns: Sequence[str], key: str, show: Callable[[str, Rows, str], None]
) -> Iterator[Callable[[str, Rows, str], None]]:
    """Yields what takes an image, the rows that are said of it, and what is wrong with it: ``show``, or for a file of
    one of ``ROW_FORMATS`` that appears whole or not at all. ``columns``: of the rows; ``key``: what JSON calls them."""
    if output is None:
        yield show
        return
    with (
        whole_file("--output", output) as part,
        part.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        if output.suffix.lower() == ".csv":
            from megaclass.report.console import csv_field

            fields = ("image", *columns, "error")
            table = csv.DictWriter(file, fields, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            table.writeheader()

            def write_rows(image: str, rows: Rows, error: str) -> None:
                for row in rows or [{"error": error}]:
                    cells = {"image": image, **row}.items()
                    table.writerow({name: csv_field(v) if isinstance(v, str) else v for name, v in cells})

            yield write_rows
            return
        as_list = output.suffix.lower() == ".json"
        before, between, after = ("[\n", ",\n", "\n]\n") if as_list else ("", "\n", "\n")
        leads = itertools.chain([before], itertools.repeat(between))

        def write(image: str, rows: Rows, error: str) -> None:
            entry = {"image": image, key: rows} | ({"error": error} if error else {})
            file.write(next(leads) + json.dumps(entry))

        yield write
        file.write(after)


def show_pictures(name: str, *arguments: Any) -> None:
    """Say what a function of :mod:`megaclass.report.curves` has drawn. What it cannot is a warning, for the work
    before it has ended well."""
    try:
        from megaclass.report import curves

        for path in getattr(curves, name)(*arguments):
            tell(f"picture   {path}")
    except Exception as error:
        tell(f"Warning: no pictures: {getattr(error, 'strerror', None) or error}")
