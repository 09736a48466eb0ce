"""The three files: complete, escaped, linked, and the page in one piece."""

import csv
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO

import pytest

from made_rows import INFER, LAPTOP, PHOTOGRAPHS, every_row, lost, row, write_rows
from megaclass.errors import UserError
from megaclass.report.page import collect, write
from megaclass.report.page.build import build
from megaclass.report.page.html import render_html
from megaclass.report.page.markdown import render_markdown
from megaclass.report.page.table_csv import HEADER, render_csv
from megaclass.results import published
from page_documents import document_of, sources_of

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> | a `b` *c* [d](http://e) \n=1+1\x0c &amp; \\ $x$"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Tags(HTMLParser):
    """Every element and its attributes; refuses what is not nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), f"{tag}: an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> in {self.open[-3:]}"

    def handle_data(self, data):
        self.text.append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def _hostile_rows():
    case = {
        "recipe": HOSTILE,
        HOSTILE: HOSTILE,
        "batch_size": 1,
        "num_classes": 10,
        "nested": {HOSTILE: [HOSTILE]},
    }
    environment = dict.fromkeys(LAPTOP, HOSTILE) | {"gpu": HOSTILE, "variables": {HOSTILE: HOSTILE}}
    fields = {"environment": environment, "implementation": HOSTILE, "suite": HOSTILE, "measured_at": HOSTILE}
    rows = [
        row("infer", case | {"batch_size": batch}, 1.0, **(fields | {"asked": {HOSTILE: 1, "batch_size": 5}}))
        for batch in (1, 2)
    ]
    return [*rows, row(HOSTILE, case, 1.0), lost("train", case, "failed", HOSTILE, environment=environment)]


@pytest.fixture(params=["every", "hostile"])
def document(request, tmp_path):
    rows = every_row() if request.param == "every" else _hostile_rows()
    return document_of(tmp_path, rows, against=["arcface-a100", "resnet50-nvidia"], earlier=rows[:3])


def test_the_page_is_nested_and_links_lead_somewhere(document, tmp_path):
    tags = Tags(render_html(document, tmp_path))
    ids = [attributes["id"] for _, attributes in tags.elements if "id" in attributes]
    assert len({*ids}) == len(ids)
    links = [attributes["href"] for attributes in tags.named("a")]
    assert len(links) > 10 and all(link.startswith("#") and link[1:] in ids for link in links)
    for attributes in (attributes for _, attributes in tags.elements if "aria-labelledby" in attributes):
        assert attributes["aria-labelledby"] in ids


def test_every_table_picture_row_and_number_is_in_the_page(document, tmp_path):
    page = render_html(document, tmp_path)
    tags = Tags(page)
    assert len(tags.named("table")) == len(document.tables())
    assert len([one for one in tags.named("svg") if one.get("role") == "img"]) == len(document.pictures())
    assert len(tags.named("details")) == len(document.sources)
    for table in document.tables():
        assert html.escape(table.title) in page
        for cell in (cell for line in table.lines for cell in line.cells if cell.sources and cell.text):
            assert f'<a href="#r{cell.sources[0].number}">{html.escape(cell.text)}</a>' in page


def test_the_page_asks_nothing_of_anybody(document, tmp_path):
    page = render_html(document, tmp_path)
    tags = Tags(page)
    assert {tag for tag, _ in tags.elements} & {"img", "iframe", "object", "embed", "form", "base"} == set()
    assert len(tags.named("script")) == 1 and "src" not in tags.named("script")[0]
    assert [one["href"] for one in tags.named("link")] == ["data:,"]
    for _, attributes in tags.elements:
        assert not {"src", "srcset", "action", "background"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", page)
    policy = next(one["content"] for one in tags.named("meta") if "http-equiv" in one)
    assert policy.startswith("default-src 'none'")


def test_what_stands_in_rows_is_text(tmp_path):
    document = document_of(tmp_path, _hostile_rows())
    tags = Tags(render_html(document, tmp_path))
    assert "<script>alert(1)</script>" in "".join(tags.text)
    raw = html.unescape(render_html(document, tmp_path).split("<pre>")[1].split("</pre>")[0])
    assert json.loads(raw)["implementation"] == HOSTILE


def test_every_raw_row_has_all_its_samples(tmp_path):
    one = row("infer", INFER, 2.0, steps=33)
    page = render_html(document_of(tmp_path, [one]), tmp_path)
    raw = json.loads(html.unescape(page.split("<pre>")[1].split("</pre>")[0]))
    assert raw["samples_ms"] == one.samples_ms and raw["environment"] == one.environment


def test_markdown_tables_are_whole_and_nothing_escapes(document, tmp_path):
    text = render_markdown(document, tmp_path)
    assert "<script" not in text and "<img" not in text
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    assert len(headings) == len(document.tables()) + len(document.pictures())
    width = None
    for line in text.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        found = len(re.findall(r"(?<!\\)\|", line))
        assert width in (None, found), line
        width = found


def test_markdown_numbers_link_to_their_line_from_where_the_report_lies(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    sources = sources_of(
        folder / "rows.jsonl", [row("infer", INFER, 1.0, noise=0), row("infer", INFER, 2.0, noise=0)]
    )
    text = render_markdown(build(sources), tmp_path / "out")
    assert "[500.0](../with%20space/rows.jsonl#L2)" in text
    assert "[1,000](../with%20space/rows.jsonl#L1)" in text


def test_csv_has_a_line_for_every_number_with_its_row(document, tmp_path):
    lines = list(csv.DictReader(StringIO(render_csv(document, tmp_path))))
    numbers = [
        cell
        for table in document.tables()
        for line in table.lines
        for column, cell in zip(table.columns, line.cells, strict=True)
        if column.numeric and cell.text
    ]
    tables_of_words = sum(not any(c.numeric for c in table.columns) for table in document.tables())
    assert len(lines) >= len(numbers) + tables_of_words
    assert [
        line["source"] for line in lines if line["value"] and line["kind"] == "own" and not line["source"]
    ] == ["" for line in lines if line["table"] == "What was measured"]
    sources = {place for line in lines for place in line["source"].split()}
    assert "rows.jsonl:1" in sources and all(
        re.fullmatch(r"(rows|earlier)\.jsonl:\d+", place) for place in sources
    )


def test_a_spreadsheet_finds_no_formula(tmp_path):
    rows = [
        row("infer", {"recipe": text, "batch_size": 1}, 1.0, implementation=text)
        for text in ("=1+1", "+A1", "-A1", "@a", "\t=1")
    ]
    text = render_csv(document_of(tmp_path, rows), tmp_path)
    fields = [field for line in csv.reader(StringIO(text)) for field in line]
    assert any("=1+1" in field for field in fields)
    assert not [
        f
        for f in fields
        if (f[:1] in "=+@\t\r" and f) or (f[:1] == "-" and f != "-" and not f[1:2].isdigit())
    ]
    assert text.splitlines()[0] == ",".join(HEADER)


def test_the_same_rows_give_the_same_files(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", every_row())
    found = []
    for _ in range(2):
        write(collect([str(rows)], ["arcface-a100"]), tmp_path)
        found.append([(tmp_path / f"report.{kind}").read_bytes() for kind in ("html", "md", "csv")])
    assert found[0] == found[1]


def test_no_file_names_where_the_rows_lay(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", every_row())
    write(collect([str(rows)], published.names()), tmp_path)
    for kind in ("html", "md", "csv"):
        assert str(tmp_path) not in (tmp_path / f"report.{kind}").read_text()


def test_half_a_surrogate_pair_is_no_reason_to_fail(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [lost("infer", INFER, "failed", "HERE")])
    path.write_text(path.read_text().replace("HERE", "\\ud800"))
    assert len(write(collect([str(path)]), tmp_path)) == 3


def test_of_many_samples_the_page_shows_some_and_says_so(tmp_path):
    one = row("infer", INFER, 2.0, steps=5001)
    page = render_html(document_of(tmp_path, [one]), tmp_path)
    raw = json.loads(html.unescape(page.split("<pre>")[1].split("</pre>")[0]))
    assert raw["samples_ms"] == one.samples_ms[::3]
    assert "samples_ms: one of 3 of 5,001; line 1 of the file has all." in page


@pytest.mark.parametrize(
    "value", [10**400, 1e308, 5e-324, -(10**400), 0], ids=["long", "large", "tiny", "negative", "zero"]
)
def test_no_number_is_too_large_or_too_small(tmp_path, value):
    case = PHOTOGRAPHS | {"num_classes": value, "iterations": value}
    one = row("train", PHOTOGRAPHS, 1.0, environment={"memory_mb": value})
    sizes = [{"world_size": n, "global_batch_size": 8 * n} for n in (1, 2, value)]
    rows = [replace(one, case=case | size) for size in sizes]
    rows += [replace(rows[0], samples_ms=[value] * 3, step_ms={"p50": value}, samples_per_second=value)]
    rows += [replace(row("infer", INFER, 1.0), samples_ms=[value, 1.0], memory_mb={"driver": value})]
    stability = {"recipe": "x", "metric": "top1"}
    rows += [row("stability", stability | {"seed": n}, 1.0, result={"top1": value}) for n in (0, value)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert len(write(collect([str(path)], [*published.names(), str(path)]), tmp_path)) == 3


def test_what_is_nested_too_deep_is_no_row(tmp_path):
    deep = {}
    for _ in range(900):
        deep = {"": deep}
    path = write_rows(tmp_path / "rows.jsonl", [lost("infer", INFER, "failed", "a reason")])
    path.write_text(path.read_text().replace('"work": {}', f'"work": {json.dumps(deep)}'))
    with pytest.raises(UserError, match="line 1: not a row of a benchmark: nested more than 50 deep"):
        collect([str(path)])


def test_a_link_is_replaced_and_what_it_names_is_left_alone(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [row("infer", INFER, 2.0)])
    (tmp_path / "report.html").symlink_to(tmp_path / "elsewhere.html")
    write(collect([str(rows)]), tmp_path)
    assert not (tmp_path / "elsewhere.html").exists() and not (tmp_path / "report.html").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {
        "rows.jsonl",
        "report.html",
        "report.md",
        "report.csv",
    }
