"""``megaclass report``: rows of benchmarks as a page, as Markdown and as CSV, beside published numbers."""

from collections.abc import Sequence
from pathlib import Path

from megaclass import published
from megaclass.errors import UserError, near_match
from megaclass.report.page.build import build
from megaclass.report.page.document import Document
from megaclass.report.page.sources import Source, read_sources

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
    from megaclass.report.page import html, markdown, table_csv

    writers = {
        "report.html": (html.render_html, html.MARK),
        "report.md": (markdown.render_markdown, markdown.MARK),
        "report.csv": (table_csv.render_csv, ",".join(table_csv.HEADER)),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, (_, mark) in writers.items():
            _require_ours(directory / name, mark)
        for name, (render, _) in writers.items():
            # A row may hold half of a surrogate pair: written as a question mark.
            (directory / name).write_bytes(render(document, directory).encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"--output {directory}: cannot be written ({error.strerror})") from None
    return [directory / name for name in writers]


def _require_ours(path: Path, mark: str) -> None:
    if path.exists() and mark not in path.read_bytes()[:_LOOKED_AT].decode(errors="replace"):
        raise UserError(f"{path}: exists and is not a report of ours; move it, or name another --output")
