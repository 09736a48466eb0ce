"""``megaclass report``: rows of benchmarks as a page, as Markdown and as CSV, beside published numbers."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from megaclass.errors import UserError, near_match
from megaclass.report.page.build import build
from megaclass.report.page.document import Document
from megaclass.report.page.sources import Source, read_sources
from megaclass.results import published

_LOOKED_AT = 4096  # bytes of an existing file that tell who made it


def collect(paths: Sequence[str], against: Sequence[str] = ()) -> Document:
    """Read the rows and make the document: with the published reports of their suites and of ``against``, which
    names published reports, and files or directories of earlier rows.

    Raises UserError: no rows, unreadable, a newer schema, a name that is neither.
    """
    sources, strangers = read_sources(paths)
    known = published.names()
    for name in against:
        if name not in known and not Path(name).exists():
            raise UserError(
                f"--against {name}: neither a published report nor a file or directory of results"
                f"{near_match(name, known)}; published: {', '.join(known)}"
            )
    suites = [source.row.suite for source in sources if source.row.suite in known]
    names = dict.fromkeys([*suites, *(name for name in against if name in known)])
    files = [name for name in against if name not in known]
    earlier: list[Source] = []
    if files:
        earlier, others = read_sources(files, first=len(sources) + 1)
        strangers += others
    return build(sources, [published.load(name) for name in names], earlier, strangers)


def write(document: Document, directory: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``report.csv`` into ``directory``; returns them.

    Those of an earlier report are replaced. Raises UserError: there is a file that is not one, or no room.
    """
    require_room(directory)
    try:
        for name, (render, _) in _writers().items():
            # A row may hold half of a surrogate pair: written as a question mark.
            content = render(document, directory).encode("utf-8", errors="replace")
            _replace(directory / name, content)
    except OSError as error:
        raise UserError(f"--output {directory}: cannot be written ({error.strerror})") from None
    return [directory / name for name in _writers()]


def _replace(path: Path, content: bytes) -> None:
    """Write it whole, or leave what was there. A link is replaced, and not what it names."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def require_room(directory: Path) -> None:
    """Make the directory, and see that no report in it is somebody else's. UserError: it cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, (_, mark) in _writers().items():
            _require_ours(directory / name, mark)
    except OSError as error:
        raise UserError(f"--output {directory}: cannot be written ({error.strerror})") from None


def _writers() -> dict[str, tuple[Callable[[Document, Path], str], str]]:
    """By file: what renders it, and what its beginning has in it."""
    from megaclass.report.page import html, markdown, table_csv

    return {
        "report.html": (html.render_html, html.MARK),
        "report.md": (markdown.render_markdown, markdown.MARK),
        "report.csv": (table_csv.render_csv, ",".join(table_csv.HEADER)),
    }


def _require_ours(path: Path, mark: str) -> None:
    if path.exists() and mark not in path.read_bytes()[:_LOOKED_AT].decode(errors="replace"):
        raise UserError(f"{path}: exists and is not a report of ours; move it, or name another --output")
