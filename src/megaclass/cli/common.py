"""What verbs that read and write files share: options, a progress bar, and files that appear whole or not at all."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from megaclass.cli.parsing import Options, make_parser, parse
from megaclass.errors import UserError, make_room, printable

SET = "record set, WebDataset tars or image folder, here or at an address (s3://..); several with ':' between them"
OUTPUT = "directory for the record set; must not hold one"


def tell(line: str, file: TextIO | None = None) -> None:
    """Print a line: file names in it may hold what a terminal would obey."""
    print(printable(line), file=file)


def read_options(
    words: list[str], usage: str, text: str, positional: Mapping[str, str], options: Options
) -> Any:
    """The words parsed, see :func:`megaclass.cli.parsing.make_parser`. Raises UserError for a negative number."""
    found = parse(make_parser(usage, text, positional, options), words)
    for name, value in vars(found).items():
        if type(value) is int and value < 0:
            raise UserError(f"--{name.replace('_', '-')}: {value} is below 0")
    return found


@contextlib.contextmanager
def progress_bar(
    doing: str, interrupted: str, of_bytes: bool = False
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
            *columns, console=console, transient=True, disable=not sys.stderr.isatty()
        ) as bar:
            task = bar.add_task(doing, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted) from None


@contextlib.contextmanager
def whole_file(option: str, path: Path) -> Iterator[Path]:
    """Yields a hidden name to write to, which becomes ``path`` when the block ends well; else nothing is left.

    Raises UserError, which names the ``option``, for what the system does not let through.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"{option}: {path} cannot be written: {error.strerror or error}; {make_room(error)}name another file"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            part.unlink()


def show_pictures(draw: Callable[[], Sequence[Path]]) -> None:
    """Say which pictures ``draw`` has drawn. What it cannot is a warning, for the work before it has ended well."""
    try:
        for path in draw():
            tell(f"picture   {path}")
    except Exception as error:
        tell(f"Warning: no pictures: {getattr(error, 'strerror', None) or error}")
