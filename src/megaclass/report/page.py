"""``megaclass report``: rows of benchmarks as a page, as Markdown and as CSV, beside published numbers."""

import base64
import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from megaclass import __version__
from megaclass.errors import UserError, near_match
from megaclass.report.build import build
from megaclass.report.document import Document
from megaclass.report.pictures import draw, legend
from megaclass.report.sources import Source, read_sources
from megaclass.report.table import CSV_HEADER, markdown_text, to_csv, to_markdown
from megaclass.results import published

# By file: what its beginning has in it, so that a report of ours is known from somebody's file.
_MARKS = {
    "report.html": '<meta name="generator" content="megaclass report">',
    "report.md": "<!-- made by megaclass report -->",
    "report.csv": ",".join(CSV_HEADER),
}
_LOOKED_AT = 4096  # bytes of an existing file that tell who made it
_MOST_SAMPLES = 2000  # of a row in the page


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
    writers = {"report.html": render_html, "report.md": render_markdown, "report.csv": render_csv}
    try:
        for name, render in writers.items():
            # A row may hold half of a surrogate pair: written as a question mark.
            _replace(directory / name, render(document, directory).encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"--output {directory}: cannot be written ({error.strerror})") from None
    return [directory / name for name in writers]


def write_page(paths: Sequence[str], directory: Path) -> list[Path]:
    """The three files of rows that lie in these files and directories."""
    return write(collect(paths), directory)


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
        for name, mark in _MARKS.items():
            path = directory / name
            if path.exists() and mark not in path.read_bytes()[:_LOOKED_AT].decode(errors="replace"):
                raise UserError(
                    f"{path}: exists and is not a report of ours; move it, or name another --output"
                )
    except OSError as error:
        raise UserError(f"--output {directory}: cannot be written ({error.strerror})") from None


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
    entries = (
        f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items()
    )
    return "{\n" + ",\n".join(entries) + "\n}", told


def render_markdown(document: Document, directory: Path) -> str:
    """As code hosts show it, links to rows going from ``directory``. The pictures are those of the page."""
    return "\n".join(_markdown(document, directory)).rstrip("\n") + "\n"


def _markdown(document: Document, directory: Path) -> Iterator[str]:
    def target(source: Source) -> str:
        return f"{quote(source.file_from(directory), errors='surrogateescape')}#L{source.line}"

    yield from (_MARKS["report.md"], "", f"# {markdown_text(document.title)}", "")
    yield from (f"Made by megaclass {__version__} from raw rows.", "")
    for section in document.sections:
        yield from (f"## {markdown_text(section.title)}", "")
        for item in section.headlines:
            number = f"[{markdown_text(item.number)}]({target(item.source)})"
            words = "; ".join(map(markdown_text, (item.detail, item.machine, item.basis)))
            yield f"- **{number} {markdown_text(item.unit)}**: {words}"
        if section.headlines:
            yield ""
        for text in section.texts:
            yield from (markdown_text(text), "")
        for table in section.tables:
            yield from (*to_markdown(table, target), "")
        for picture in section.pictures:
            yield from (f"### {markdown_text(picture.title)}", "")
            yield from (f"The picture is in report.html. {markdown_text(picture.alt)}", "")
        if section.bullets:
            yield from (*(f"- {markdown_text(text)}" for text in section.bullets), "")


def render_csv(document: Document, directory: Path) -> str:
    """The numbers, one a line; ``source`` is FILE:LINE as seen from ``directory``, or several with spaces between."""

    def where(source: Source) -> str:
        return f"{source.file_from(directory)}:{source.line}"

    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for section in document.sections:
        for table in section.tables:
            writer.writerows(to_csv(section.title, table, where))
    return text.getvalue()
