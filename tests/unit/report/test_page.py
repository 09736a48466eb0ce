"""What a report reads and refuses, and its three files: complete, escaped, linked, the page in one piece."""

import csv
import html
import itertools
import json
import os
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest

from made_rows import (
    INFER,
    LAPTOP,
    PHOTOGRAPHS,
    SERVER,
    document_of,
    every_row,
    lost,
    pictures_of,
    row,
    tables_of,
    write_rows,
)
from megaclass.errors import UserError
from megaclass.report.build import collect
from megaclass.report.page import CSV_HEADER, render_csv, render_html, render_markdown, write_page
from megaclass.report.sources import identity, machines_of, read_sources
from megaclass.results import published

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>|a `b` *c* [d](http://e) \n=1+1\x0c &amp; \\ {{7}}"
VOID = {"meta", "link", "br", "img", "input", "hr", "source"}
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
ONE = row("infer", INFER, 2.0)


class Tags(HTMLParser):
    """Every element and its attributes; refuses what is not nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), f"{tag}: an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> in {self.open[-3:]}"

    def named(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def _hostile_rows():
    nested = {"nested": {HOSTILE: [HOSTILE]}}
    case = {"recipe": HOSTILE, HOSTILE: HOSTILE, "batch_size": 1, "num_classes": 10} | nested
    environment = dict.fromkeys(LAPTOP, HOSTILE) | {"gpu": HOSTILE, "variables": {HOSTILE: HOSTILE}}
    fields = {"environment": environment, "implementation": HOSTILE, "suite": HOSTILE, "measured_at": HOSTILE}
    rows = [
        row("infer", case | {"batch_size": batch}, 1.0, **(fields | {"asked": {HOSTILE: 1, "batch_size": 5}}))
        for batch in (1, 2, 4, 8)
    ]
    return [*rows, row(HOSTILE, case, 1.0), lost("train", case, "failed", HOSTILE, environment=environment)]


@pytest.fixture(params=["every", "hostile"])
def document(request, tmp_path):
    rows = every_row() if request.param == "every" else _hostile_rows()
    return document_of(tmp_path, rows, against=["arcface-a100", "resnet50-nvidia"])


# -- the page -------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_asks_nothing_of_anybody(document, tmp_path):
    page = render_html(document, tmp_path)
    tags = Tags(page)
    ids = [attributes["id"] for _, attributes in tags.elements if "id" in attributes]
    links = [attributes["href"] for attributes in tags.named("a")]
    assert len({*ids}) == len(ids) and len(links) > 10
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    labels = {attributes["aria-labelledby"] for _, attributes in tags.elements if "aria-labelledby" in attributes}
    assert labels <= {*ids}
    # Every table, picture, row and number is there.
    assert len(tags.named("table")) == len(tables_of(document))
    assert len(tags.named("img")) == len(pictures_of(document)) > 0
    assert len(tags.named("details")) == len(document.sources)
    for table in tables_of(document):
        assert html.escape(table.title)[:20] in page
        for cell in (cell for line in table.lines for cell in line.cells if cell.sources and cell.text):
            text = html.escape(cell.text).replace("&#x27;", "&#39;")
            assert f'<a href="#r{cell.sources[0].number}">{text}' in page
    # What stands in rows is text, and nothing is fetched or run.
    assert {tag for tag, _ in tags.elements} & {"iframe", "object", "embed", "form", "base"} == set()
    assert tags.named("script") == [{}] and [one["href"] for one in tags.named("link")] == ["data:,"]
    for _, attributes in tags.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("action", "background")]
        for address in filter(None, (attributes.get("src"), attributes.get("srcset"))):
            assert address.startswith("data:image/svg+xml;base64,")
    assert not re.search(r"url\(|@import", page)
    (policy,) = [one["content"] for one in tags.named("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'")


def test_a_raw_row_has_all_its_samples_or_says_that_it_has_not(tmp_path):
    rows = [row("infer", INFER, 2.0, steps=33), row("infer", INFER, 2.0, steps=5001)]
    page = render_html(document_of(tmp_path, rows), tmp_path)
    first, second = (json.loads(html.unescape(part.split("</pre>")[0])) for part in page.split("<pre>")[1:])
    assert first["samples_ms"] == rows[0].samples_ms and first["environment"] == rows[0].environment
    assert second["samples_ms"] == rows[1].samples_ms[::3]
    assert "samples_ms: one of 3 of 5,001; line 2 of the file has all." in page


@pytest.mark.parametrize("suite", ["arcface-a100", "resnet50-abci", "resnet50-nvidia"])
def test_the_committed_suites_render_as_they_are_committed(suite):
    folder = RESULTS / f"suite-{suite}-cpu"
    document = collect([str(folder)])
    Tags(render_html(document, folder))
    assert any(section.title.startswith(f"Beside {suite}") for section in document.sections)
    found = [re.findall(r"\[[^]]*\]\(rows[^)]*\)", text.split("## Beside")[1].split("\n## ")[0])
             for text in (render_markdown(document, folder), (folder / "report.md").read_text())]  # fmt: skip
    assert found[0] == found[1] != [], "make it again: megaclass report DIR"


def test_every_committed_file_of_rows_is_read_and_every_row_shown():
    files = sorted(RESULTS.rglob("*.jsonl"))
    document = collect([str(path) for path in files])
    assert len(files) > 10 and {source.path for source in document.sources} == {*files}
    shown = {s for table in tables_of(document) for line in table.lines for c in line.cells for s in c.sources}
    assert shown == {*document.sources}


# -- Markdown and CSV -----------------------------------------------------------------------------------


def test_markdown_tables_are_whole_and_nothing_escapes(document, tmp_path):
    text = render_markdown(document, tmp_path)
    assert "<script" not in text and "<img" not in text
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    assert len(headings) == len(tables_of(document)) + len(pictures_of(document))
    width = None
    for line in text.splitlines():
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert None in (width, found) or width == found, line
        width = found


def test_markdown_numbers_link_to_their_line_from_where_the_report_lies(tmp_path):
    (tmp_path / "with space").mkdir()
    write_rows(tmp_path / "with space" / "rows.jsonl", [row("infer", INFER, ms, noise=0) for ms in (1.0, 2.0)])
    text = render_markdown(collect([str(tmp_path / "with space")]), tmp_path / "out")
    assert "[1,000](../with%20space/rows.jsonl#L1)" in text and "[500.0](../with%20space/rows.jsonl#L2)" in text


def test_csv_has_a_line_for_every_number_with_its_row(document, tmp_path):
    lines = list(csv.DictReader(StringIO(render_csv(document, tmp_path))))
    pairs = [pair for t in tables_of(document) for line in t.lines for pair in zip(t.columns, line.cells, strict=True)]
    assert len(lines) >= sum(column.numeric and cell.text != "" for column, cell in pairs)
    assert all(line["source"] for line in lines if line["value"] and line["kind"] == "own")
    sources = {place for line in lines for place in line["source"].split()}
    assert "rows.jsonl:1" in sources
    assert all(re.fullmatch(r"(rows|earlier)\.jsonl:\d+", place) for place in sources)


def test_a_spreadsheet_finds_no_formula(tmp_path):
    bad = ("=1+1", "+A1", "-A1", "@a", "\t=1")
    rows = [row("infer", {"recipe": text, "batch_size": 1}, 1.0, implementation=text) for text in bad]
    text = render_csv(document_of(tmp_path, rows), tmp_path)
    fields = [field for line in csv.reader(StringIO(text)) for field in line]
    assert any("=1+1" in field for field in fields) and text.startswith(",".join(CSV_HEADER))
    assert not [f for f in fields if f[:1] in ("=", "+", "@", "\t", "\r") or re.match(r"-[^\d]", f)]


# -- which rows -----------------------------------------------------------------------------------------


def test_a_directory_gives_all_its_rows_with_their_lines_and_each_file_once(tmp_path):
    write_rows(tmp_path / "b.jsonl", [ONE, ONE])
    write_rows(tmp_path / "a.jsonl", [ONE])
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    sources = read_sources([tmp_path, tmp_path / "a.jsonl"])
    found = [(s.path.name, s.line, s.number) for s in sources]
    assert found == [("a.jsonl", 1, 1), ("b.jsonl", 1, 2), ("b.jsonl", 2, 3)]


def _line(**changes):
    record = {"schema_version": 2, "implementation": "a", "benchmark": "x", "case": {}, "status": "ok"}
    return json.dumps(record | changes) + "\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        ("", "no row of a benchmark"),
        ('{"event": "step"}\n', "line 1: not a row"),
        (_line() + "{\n", "line 2: not a line of JSON"),
        (_line() + _line(schema_version=99), "line 2: written with schema 99"),
        (
            _line(samples_ms=[1.0, 0.0]),
            "line 1: not a row of a benchmark: not all of samples_ms are above 0",
        ),
        (_line(memory_mb=5), "line 1: memory_mb of the row of a benchmark is 5, not dict"),
        (_line(samples_ms={}), "line 1: samples_ms of the row of a benchmark is {}, not list"),
        (_line(key=[1]), "line 1: key of the row of a benchmark is [1], not"),
        (_line(work={"flops": True}), "line 1: work of the row of a benchmark is {'flops': True}, not"),
        ("[" * 200_000 + "\n", "line 1: not a line of JSON"),
    ],
)
def test_bad_rows_end_with_one_line(refused, tmp_path, content, told):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    assert not refused(["report", path], told)


# -- the command ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_three_files_lie_beside_the_rows_and_are_the_same_again(refused, told, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [*every_row(), lost("infer", INFER, "failed", "HERE")])
    rows.write_text(rows.read_text().replace("HERE", "\\ud800"))  # half a surrogate pair, as JSON may hold
    found = []
    for _ in range(2):
        files = [Path(line) for line in told("report", rows, "--against", *published.names()).split()]
        assert files == [tmp_path / f"report.{kind}" for kind in ("html", "md", "csv")]
        found.append([path.read_text() for path in files])
    assert found[0] == found[1]
    assert not [text for text in found[0] if str(tmp_path) in text]
    refused(["report", rows, "--against", "arcface-a1000"], "did you mean 'arcface-a100'?")


def test_nothing_that_a_terminal_obeys_gets_into_a_report(tmp_path):
    nasty = "=x\x1b[2J\x07\r\x9b\u202e"
    here = {"system": nasty, "cpu": nasty, "gpu": nasty}
    rows = [
        row("train", PHOTOGRAPHS | {"recipe": nasty, nasty: nasty}, 1.0, environment=here),
        lost("infer", INFER, "failed", nasty),
    ]
    written = write_page([str(write_rows(tmp_path / f"{nasty}.jsonl", [*rows, ONE]))], tmp_path / "out")
    for path in written:
        text = path.read_bytes().decode()
        assert "x\\x1b[2J" in text.replace("\\\\", "\\").replace("\\[", "[")
        assert [letter for letter in text if not letter.isprintable() and letter not in "\n"] == [], path.name
    fields = list(itertools.chain(*csv.reader(written[2].read_text().splitlines())))
    assert [field for field in fields if field.startswith("=")] == []


def test_a_file_of_somebody_else_is_left_as_it_is_and_a_link_is_replaced(tmp_path):
    rows, out = write_rows(tmp_path / "rows.jsonl", [ONE]), tmp_path / "new" / "deep"
    write_page([str(rows)], out)
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(tmp_path / "elsewhere.html")
    write_page([str(rows)], out)
    assert not (tmp_path / "elsewhere.html").exists() and not (out / "report.html").is_symlink()
    assert len(list(out.iterdir())) == 3
    (out / "report.md").write_text("my own words")
    with pytest.raises(UserError, match=r"report\.md: exists and is not a report of ours"):
        write_page([str(rows)], out)
    assert (out / "report.md").read_text() == "my own words"


# -- machines -------------------------------------------------------------------------------------------


def test_the_spec_has_the_lines_of_the_published_ones_and_all_versions():
    newer = SERVER | {"pytorch": "2.14.0", "revision": "feed", "memory_mb": SERVER["memory_mb"] + 1}
    (machine,) = machines_of([SERVER, newer]).values()
    assert [key for key, _ in machine.spec][:5] == ["System", "CPU", "Memory", "GPU", "OS"]
    assert {
        ("GPU", "8 x Testcard T1 80GB, 80.0 GiB each"),
        ("Installation", "CUDA 13.0, cuDNN 9.10.2"),
        ("Installation", "PyTorch 2.13.0+cu130, 2.14.0"),
        ("Source revision", f"{SERVER['revision']}, feed"),
    } <= {*machine.spec}
    (machine,) = machines_of([{}]).values()
    assert machine.name == "machine not recorded" and machine.spec == []


def test_each_part_of_the_identity_makes_another_machine_and_another_name():
    names = ("system", "cpu", "cpu_threads", "memory_mb", "gpu", "gpu_count")
    others = [SERVER | {key: 3 if isinstance(SERVER[key], int) else "Other"} for key in names]
    assert len({identity(one) for one in (SERVER, *others)}) == 7
    found = machines_of([LAPTOP, LAPTOP | {"memory_mb": 32000}, SERVER])
    laptop, server = "Testchip 9000, 2 threads", "8 x Testcard T1 80GB"
    assert [machine.name for machine in found.values()] == [f"{laptop} [A]", f"{laptop} [B]", server]
