"""The document as Markdown, as code hosts show it. Its pictures are those of the page."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from megaclass import __version__
from megaclass.report.page.document import Block, Bullets, Cell, Document, Headlines, Picture, Table
from megaclass.report.page.sources import Source

MARK = "<!-- made by megaclass report -->"


def render_markdown(document: Document, directory: Path) -> str:
    """directory: where it will lie; links to rows go from there."""
    lines = [
        MARK,
        "",
        f"# {_text(document.title)}",
        "",
        f"Made by megaclass {__version__} from raw rows.",
        "",
    ]
    for section in document.sections:
        lines += [f"## {_text(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block, directory), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _block(block: Block, directory: Path) -> Iterator[str]:
    if isinstance(block, str):
        yield _text(block)
    elif isinstance(block, Bullets):
        yield from (f"- {_text(text)}" for text in block.texts)
    elif isinstance(block, Headlines):
        for item in block.items:
            number = _link(item.number, item.source, directory)
            yield f"- **{number} {_text(item.unit)}**: {_text(item.detail)}; {_text(item.machine)}; {_text(item.basis)}"
    elif isinstance(block, Table):
        yield from _table(block, directory)
    else:
        yield from _picture(block)


def _table(table: Table, directory: Path) -> Iterator[str]:
    yield f"### {_text(table.title)}"
    yield ""
    for remark in table.remarks:
        yield from (_text(remark), "")
    yield _row(_text(column.title) for column in table.columns)
    yield _row("---:" if column.numeric else "---" for column in table.columns)
    for line in table.lines:
        yield _row(_cell(cell, directory) for cell in line.cells)
    if table.notes.texts:
        yield ""
        yield from (f"{place}. {_text(text)}" for place, text in enumerate(table.notes.texts, start=1))


def _row(cells: Iterator[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: Cell, directory: Path) -> str:
    text = _text(cell.text)
    if cell.sources and text:
        first, *more = cell.sources
        text = _link(cell.text, first, directory)
        text += "".join(f" [{place}]({_target(s, directory)})" for place, s in enumerate(more, start=2))
    return text + (f"<sup>{','.join(map(str, cell.notes))}</sup>" if cell.notes else "")


def _link(text: str, source: Source, directory: Path) -> str:
    return f"[{_text(text)}]({_target(source, directory)})"


def _target(source: Source, directory: Path) -> str:
    return f"{quote(source.file_from(directory), errors='surrogateescape')}#L{source.line}"


def _picture(picture: Picture) -> Iterator[str]:
    yield f"### {_text(picture.title)}"
    yield ""
    yield f"The picture is in [report.html](report.html). {_text(picture.alt)}"


def _text(text: str) -> str:
    """One line in which no character means anything but itself."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text)
    return re.sub(r"^([-+#=]|\d+(?=[.)]))", r"\\\1", text) if not re.match(r"\d+[.)]\S", text) else text
