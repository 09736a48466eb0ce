"""The document as one self-contained page: no network, no other file."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from megaclass import __version__
from megaclass.report.page.document import (
    Block,
    Bullets,
    Cell,
    Column,
    Document,
    Headlines,
    Line,
    Picture,
    Series,
    Table,
)
from megaclass.report.page.draw import css_colours, draw
from megaclass.report.page.style import CSS, POLICY, SCRIPT

MARK = '<meta name="generator" content="megaclass report">'
_STATUSES = ("oom", "timeout", "failed", "skipped")
_MOST_SAMPLES = 2000  # of a row in the page
_MIDDLE, _LONG = 14, 60  # characters: a cell that has more is words, or a text, and gets room


def render_html(document: Document, directory: Path) -> str:
    """directory: where the page will lie; the files of the rows are named as seen from there."""
    return "\n".join(_Page(document, directory).lines()) + "\n"


class _Page:
    def __init__(self, document: Document, directory: Path) -> None:
        self._document = document
        self._directory = directory
        self._tables = itertools.count(1)
        self._pictures = itertools.count(1)

    def lines(self) -> Iterator[str]:
        document = self._document
        yield "<!DOCTYPE html>"
        yield '<html lang="en">\n<head>\n<meta charset="utf-8">'
        yield f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
        yield MARK
        yield f"<title>{escape(document.title)}</title>"
        yield '<link rel="icon" href="data:,">'
        yield f"<style>\n{CSS}\n</style>\n</head>\n<body>"
        yield f"<header>\n<h1>{escape(document.title)}</h1>"
        made = f"Made by megaclass {__version__} from raw rows, which are at the end of this page."
        yield f'<p class="made">{escape(made)}</p>'
        yield from self._contents()
        yield "</header>\n<main>"
        for place, section in enumerate(document.sections, start=1):
            yield f'<section id="s{place}">\n<h2>{escape(section.title)}</h2>'
            for pictured, blocks in itertools.groupby(
                section.blocks, lambda block: isinstance(block, Picture)
            ):
                if pictured:
                    yield '<div class="pictures">'
                for block in blocks:
                    yield from self._block(block)
                if pictured:
                    yield "</div>"
            yield "</section>"
        yield from self._rows()
        end = f"megaclass {__version__}. Numbers of different machines never share a cell."
        yield f"</main>\n<footer>{escape(end)}</footer>"
        yield f"<script>{SCRIPT}</script>\n</body>\n</html>"

    def _contents(self) -> Iterator[str]:
        yield '<nav aria-label="Contents">\n<ul>'
        for place, section in enumerate(self._document.sections, start=1):
            yield f'<li><a href="#s{place}">{escape(section.title)}</a></li>'
        yield '<li><a href="#rows">Raw rows</a></li>\n</ul>\n</nav>'

    def _block(self, block: Block) -> Iterator[str]:
        if isinstance(block, str):
            yield f"<p>{escape(block)}</p>"
        elif isinstance(block, Bullets):
            yield '<ul class="text">' + "".join(f"<li>{escape(text)}</li>" for text in block.texts) + "</ul>"
        elif isinstance(block, Headlines):
            yield from _headlines(block)
        elif isinstance(block, Table):
            yield from _table(block, f"t{next(self._tables)}")
        else:
            yield from _picture(block, f"f{next(self._pictures)}")

    def _rows(self) -> Iterator[str]:
        yield '<section id="rows">\n<h2>Raw rows</h2>'
        yield (
            f"<p>Every row as it was measured, with all its samples; of more than {_MOST_SAMPLES:,} every so many-th, "
            "and the file has all.</p>"
        )
        for source in self._document.sources:
            where = f"{source.file_from(self._directory)} line {source.line}"
            row = source.row
            what = f"{row.benchmark}, {row.implementation}, {row.status}"
            yield f'<details id="r{source.number}"><summary>{escape(where)}: {escape(what)}</summary>'
            record = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
            for key, value in record.items():
                if isinstance(value, list) and len(value) > _MOST_SAMPLES:
                    step = -(-len(value) // _MOST_SAMPLES)
                    record[key] = value[::step]
                    told = (
                        f"{key}: one of {step:,} of {len(value):,}; line {source.line} of the file has all."
                    )
                    yield f'<p class="remark">{escape(told)}</p>'
            yield f"<pre>{escape(_raw(record))}</pre></details>"
        yield "</section>"


def _raw(record: Mapping[str, Any]) -> str:
    """An entry a line."""
    entries = (
        f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items()
    )
    return "{\n" + ",\n".join(entries) + "\n}"


def _headlines(block: Headlines) -> Iterator[str]:
    yield '<div class="heads">'
    for item in block.items:
        yield (
            f'<div class="head"><p class="number"><a href="#r{item.source.number}">{escape(item.number)}</a> '
            f'<span class="unit">{escape(item.unit)}</span></p><p>{escape(item.detail)}</p>'
            f'<p class="machine">{escape(item.machine)}</p><p class="basis">{escape(item.basis)}</p></div>'
        )
    yield "</div>"


def _table(table: Table, name: str) -> Iterator[str]:
    yield f'<h3 id="{name}-title">{escape(table.title)}</h3>'
    yield from (f'<p class="remark">{escape(remark)}</p>' for remark in table.remarks)
    beside = any(line.kind == "published" for line in table.lines) and len(table.columns) > 2
    plain = (
        " plain" if not any(column.numeric for column in table.columns) and len(table.columns) == 2 else ""
    )
    yield f'<div class="scroll{plain}" role="region" aria-labelledby="{name}-title" tabindex="0">'
    yield f'<table id="{name}" aria-labelledby="{name}-title"' + (' class="beside">' if beside else ">")
    heads = "".join(
        f'<th scope="col"{_class("n" * column.numeric)}>{escape(column.title)}</th>'
        for column in table.columns
    )
    yield f"<thead><tr>{heads}</tr></thead>\n<tbody>"
    yield from (_line(line, table.columns) for line in table.lines)
    yield "</tbody></table></div>"
    if table.notes.texts:
        items = "".join(f"<li>{escape(text)}</li>" for text in table.notes.texts)
        yield f'<ol class="notes">{items}</ol>'


def _line(line: Line, heads: Sequence[Column]) -> str:
    cells = "".join(_cell(cell, column.numeric) for cell, column in zip(line.cells, heads, strict=True))
    return f'<tr class="{line.kind}">{cells}</tr>'


def _cell(cell: Cell, numeric: bool) -> str:
    text = escape(cell.text)
    if cell.sources and text:
        first, *more = cell.sources
        text = f'<a href="#r{first.number}">{text}</a>'
        text += "".join(
            f' <a class="more" href="#r{other.number}" aria-label="another row of this number">{place}</a>'
            for place, other in enumerate(more, start=2)
        )
    if cell.notes:
        text += f"<sup>{','.join(map(str, cell.notes))}</sup>"
    names = ["n" if numeric else "l"]
    if not numeric and len(cell.text) > _MIDDLE:
        names.append("long" if len(cell.text) > _LONG else "middle")
    if cell.text in _STATUSES and cell.sources:
        names.append("bad")
    return f"<td{_class(' '.join(names))}>{text}</td>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _picture(picture: Picture, name: str) -> Iterator[str]:
    yield f'<figure id="{name}"><h3>{escape(picture.title)}</h3>'
    label = f'role="img" aria-label="{escape(picture.alt)}"'
    yield draw(picture, name).replace("<svg ", f"<svg {label} ", 1)
    items = dict.fromkeys(  # all ideal lines are one entry
        f"<li{_class('published' * one.published)}>{_sample(one, colour)}<span>{escape(one.label)}</span></li>"
        for one, colour in zip(picture.series, css_colours(picture.series), strict=True)
    )
    caption = f'<p class="remark">{escape(picture.remark)}</p>' if picture.remark else ""
    yield f'<figcaption><ul class="legend">{"".join(items)}</ul>{caption}</figcaption></figure>'


def _sample(series: Series, colour: str) -> str:
    """A piece of the curve, for the legend."""
    dash, mark = "", f'<circle cx="14" cy="5" r="3.4" fill="{colour}"/>'
    if series.published:
        dash = ' stroke-dasharray="5 3"'
        mark = f'<rect x="11" y="2" width="6" height="6" fill="var(--paper)" stroke="{colour}" stroke-width="1.3"/>'
    elif series.ideal:
        dash, mark = ' stroke-dasharray="1.5 2.5"', ""
    line = f'<path d="M0 5H28" stroke="{colour}" stroke-width="2"{dash}/>'
    return f'<svg viewBox="0 0 28 10" aria-hidden="true">{line}{mark}</svg>'
