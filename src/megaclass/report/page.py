"""``megaclass report`` writes a document as a page, as Markdown and as CSV."""

import base64
import csv
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from megaclass import __version__
from megaclass.errors import UserError, printable
from megaclass.files import open_regular, whole_file
from megaclass.report.build import collect
from megaclass.report.console import csv_field
from megaclass.report.document import Cell, Document, Table
from megaclass.report.pictures import draw
from megaclass.report.sources import Source

CSV_HEADER = ("section", "table", "line", "kind", "labels", "column", "text", "value", "notes", "source")
# By file: what its beginning has in it, so that a report of ours is known from somebody's file.
_MARKS = {
    "report.html": '<meta name="generator" content="megaclass report">',
    "report.md": "<!-- made by megaclass report -->",
    "report.csv": ",".join(CSV_HEADER),
}
_LOOKED_AT = 4096  # bytes of an existing file that tell who made it
_MOST_SAMPLES = 2000  # of a row in the page


def write_page(paths: Sequence[str], directory: Path, against: Sequence[str] = ()) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``report.csv`` of the rows in these files and directories, see
    :func:`collect`, into ``directory``; returns them.

    Those of an earlier report are replaced. Raises UserError: there is a file that is not one, or no room.
    """
    document = collect(paths, against)
    require_room(directory)
    writers = {"report.html": render_html, "report.md": render_markdown, "report.csv": render_csv}
    for name, render in writers.items():
        with whole_file("--output", directory / name) as part:
            # A row may hold half of a surrogate pair: written as a question mark.
            part.write_text(render(document, directory), encoding="utf-8", errors="replace")
    return [directory / name for name in writers]


def require_room(directory: Path) -> None:
    """Make the directory, and see that no report in it is somebody else's. UserError: it cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, mark in _MARKS.items():
            path = directory / name
            if path.exists() and mark not in _beginning(path):
                raise UserError(f"{path}: exists and is not a report of ours; move it, or name another --output")
    except OSError as error:
        raise UserError(f"--output {directory}: cannot be written ({error.strerror})") from None


def _beginning(path: Path) -> str:
    with open_regular(path) as file:
        return bytes(file.read(_LOOKED_AT)).decode(errors="replace")


# -- HTML and Markdown ----------------------------------------------------------------------------------


def render_html(document: Document, directory: Path) -> str:
    """One page of its own: no network, no other file. directory: where it will lie; the files of the rows are named as
    seen from there."""
    script = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Everything that comes from rows is escaped; the style and the script are ours, and in the package.
    return _rendered(
        "page.html",
        autoescape=True,
        document=document,
        script=script,
        # Nothing is fetched from anywhere, and no script runs but ours, whatever stands in the rows.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:",
        draw=draw,
        rows=[(source, source.file_from(directory), *_raw(source)) for source in document.sources],
        most=_MOST_SAMPLES,
    )


def render_markdown(document: Document, directory: Path) -> str:
    """As code hosts show it, links to rows going from ``directory``. The pictures are those of the page."""

    def target(source: Source) -> str:
        return f"{quote(source.file_from(directory), errors='surrogateescape')}#L{source.line}"

    return _rendered("page.md", autoescape=False, document=document, target=target).rstrip("\n") + "\n"


def _rendered(name: str, autoescape: bool, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("megaclass.report"),
        autoescape=autoescape,
        finalize=_without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plain"] = _plain
    return environment.get_template(name).render(version=__version__, **values)


def _without_controls(value: Any) -> Any:
    """Texts of rows may hold what a terminal obeys, and pages are shown on one too. The script keeps its bytes: its
    digest is stated."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(printable, value.split("\n")))


def _plain(text: str) -> str:
    """One line of Markdown in which no character means anything but itself."""
    text = printable(" ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text)
    return re.sub(r"^([-+#=]|\d+(?=[.)](\s|$)))", r"\\\1", text)


def _raw(source: Source) -> tuple[str, list[str]]:
    """The row, an entry a line, and what was left out of it: the page would not open with a million samples."""
    record: dict[str, Any] = dataclasses.asdict(source.row)
    told = []
    for key, value in record.items():
        if isinstance(value, list) and len(value) > _MOST_SAMPLES:
            step = -(-len(value) // _MOST_SAMPLES)
            record[key] = value[::step]
            told.append(f"{key}: one of {step:,} of {len(value):,}; line {source.line} of the file has all.")
    entries = (f"  {json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in record.items())
    return "{\n" + ",\n".join(entries) + "\n}", told


# -- CSV ------------------------------------------------------------------------------------------------


def render_csv(document: Document, directory: Path) -> str:
    """The numbers, one a line; ``source`` is FILE:LINE as seen from ``directory``, or several with spaces between."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for section in document.sections:
        for table in section.tables:
            for entry in _csv_lines(table, directory):
                writer.writerow([csv_field(field) for field in (section.title, table.title, *entry)])
    return text.getvalue()


def _csv_lines(table: Table, directory: Path) -> Iterator[tuple[str, ...]]:
    """For each cell of a number, or, where a table has none, for each cell but the first."""
    numeric = [place for place, column in enumerate(table.columns) if column.numeric]
    places = numeric or list(range(1, len(table.columns)))
    above: Sequence[Cell] = [Cell()] * len(table.columns)  # of the published line
    for number, line in enumerate(table.lines, start=1):
        above = line.cells if line.kind == "published" else above
        labels = "; ".join(
            f"{column.title} {cell.text or other.text}"
            for place, (column, cell, other) in enumerate(zip(table.columns, line.cells, above, strict=True))
            if place not in places and (cell.text or other.text)
        )
        for place in places:
            cell = line.cells[place]
            if cell.text:
                value = "" if cell.value is None else repr(cell.value)
                rows = " ".join(f"{source.file_from(directory)}:{source.line}" for source in cell.sources)
                title, notes = table.columns[place].title, "; ".join(cell.notes)
                yield str(number), line.kind, labels, title, cell.text, value, notes, rows
