"""Documents of reports made from rows in tests, and what to look up in them."""

from made_rows import write_rows
from megaclass.report.build import build
from megaclass.report.sources import read_sources
from megaclass.results import published


def sources_of(path, rows, first=1):
    return read_sources([write_rows(path, rows)], first)


def document_of(tmp_path, rows, against=(), earlier=()):
    sources = sources_of(tmp_path / "rows.jsonl", rows)
    before = sources_of(tmp_path / "earlier.jsonl", earlier, len(sources) + 1) if earlier else []
    return build(sources, [published.load(name) for name in against], before)


def table_of(document, title):
    """The only table whose title begins so."""
    (found,) = [table for table in document.tables() if table.title.startswith(title)]
    return found


def texts(cells):
    return [cell.text for cell in cells]
