"""``megaclass report`` writes a document as a page, as Markdown and as CSV."""

import base64
import csv
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from megaclass import __version__
from megaclass.errors import UserError
from megaclass.report.build import collect
from megaclass.report.document import Cell, Document, Table
from megaclass.report.pictures import draw, legend
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
    """The three files of rows that lie in these files and directories, see :func:`collect`."""
    return write(collect(paths, against), directory)


def write(document: Document, directory: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``report.csv`` into ``directory``; returns them.

    Those of an earlier report are replaced. Raises UserError: there is a file that is not one, or no room.
    """
    require_room(directory)
    writers = {"report.html": render_html, "report.md": render_markdown, "report.csv": render_csv}
    try:
        for name, render in writers.items():
            partial = directory / f".{name}.{os.getpid()}"  # whole, or what was there stays
            try:
                # A row may hold half of a surrogate pair: written as a question mark.
                partial.write_bytes(render(document, directory).encode("utf-8", errors="replace"))
                partial.replace(directory / name)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--output {directory}: cannot be written ({error.strerror})") from None
    return [directory / name for name in writers]


def require_room(directory: Path) -> None:
    """Make the directory, and see that no report in it is somebody else's. UserError: it cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, mark in _MARKS.items():
            path = directory / name
            if path.exists() and mark not in path.read_bytes()[:_LOOKED_AT].decode(errors="replace"):
                raise UserError(
                    f"{path}: exists and is not a report of ours; move it, or name another --output"
                )
    except OSError as error:
        raise UserError(f"--output {directory}: cannot be written ({error.strerror})") from None


# -- HTML -----------------------------------------------------------------------------------------------


def render_html(document: Document, directory: Path) -> str:
    """One page of its own: no network, no other file. directory: where it will lie; the files of the rows are named as
    seen from there."""
    import jinja2

    # Everything that comes from rows is escaped; the style and the script are ours, and in the package.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("megaclass.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    here = Path(__file__).parent / "templates"
    script = (here / "page.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        document=document,
        version=__version__,
        style=(here / "page.css").read_text(encoding="utf-8").strip(),
        script=script,
        # Nothing is fetched from anywhere, and no script runs but ours, whatever stands in the rows.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:",
        draw=draw,
        legend=legend,
        rows=[(source, source.file_from(directory), *_raw(source)) for source in document.sources],
        most=_MOST_SAMPLES,
    )


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


# -- Markdown -------------------------------------------------------------------------------------------


def render_markdown(document: Document, directory: Path) -> str:
    """As code hosts show it, links to rows going from ``directory``. The pictures are those of the page."""
    return "\n".join(_markdown(document, directory)).rstrip("\n") + "\n"


def _markdown(document: Document, directory: Path) -> Iterator[str]:
    def target(source: Source) -> str:
        return f"{quote(source.file_from(directory), errors='surrogateescape')}#L{source.line}"

    yield from (_MARKS["report.md"], "", f"# {_escaped(document.title)}", "")
    yield from (f"Made by megaclass {__version__} from raw rows.", "")
    for section in document.sections:
        yield from (f"## {_escaped(section.title)}", "")
        for item in section.headlines:
            number = f"[{_escaped(item.number)}]({target(item.source)})"
            words = "; ".join(map(_escaped, (item.detail, item.machine, item.basis)))
            yield f"- **{number} {_escaped(item.unit)}**: {words}"
        if section.headlines:
            yield ""
        for text in section.texts:
            yield from (_escaped(text), "")
        for table in section.tables:
            yield from (*_markdown_table(table, target), "")
        for picture in section.pictures:
            yield from (f"### {_escaped(picture.title)}", "")
            yield from (f"The picture is in report.html. {_escaped(picture.alt)}", "")
        if section.bullets:
            yield from (*(f"- {_escaped(text)}" for text in section.bullets), "")


def _markdown_table(table: Table, target: Callable[[Source], str]) -> Iterator[str]:
    notes = table.notes
    yield from (f"### {_escaped(table.title)}", "")
    for remark in table.remarks:
        yield from (_escaped(remark), "")
    yield _bars(_escaped(column.title) for column in table.columns)
    yield _bars("---:" if column.numeric else "---" for column in table.columns)
    for line in table.lines:
        yield _bars(_markdown_cell(cell, notes, target) for cell in line.cells)
    if notes:
        yield ""
        yield from (f"{place}. {_escaped(text)}" for place, text in enumerate(notes, start=1))


def _bars(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(cell: Cell, notes: list[str], target: Callable[[Source], str]) -> str:
    text = _escaped(cell.text)
    if cell.sources and text:
        first, *more = cell.sources
        text = f"[{text}]({target(first)})"
        text += "".join(f" [{place}]({target(source)})" for place, source in enumerate(more, start=2))
    places = ",".join(str(notes.index(note) + 1) for note in cell.notes)
    return text + (f"<sup>{places}</sup>" if places else "")


def _escaped(text: str) -> str:
    """One line in which no character means anything but itself."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text)
    return re.sub(r"^([-+#=]|\d+(?=[.)](\s|$)))", r"\\\1", text)


# -- CSV ------------------------------------------------------------------------------------------------


def render_csv(document: Document, directory: Path) -> str:
    """The numbers, one a line; ``source`` is FILE:LINE as seen from ``directory``, or several with spaces between."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for section in document.sections:
        for table in section.tables:
            for entry in _csv_lines(table, directory):
                writer.writerow([_no_formula(field) for field in (section.title, table.title, *entry)])
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


def _no_formula(text: str) -> str:
    """A spreadsheet takes what begins so for a formula; a number or a lone sign is none."""
    harmless = text in ("-", "+") or re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and not harmless else text
