"""The page as a browser shows it: nothing overflows, fails, or is asked of the network."""

import json
from pathlib import Path

import pytest

from chromium import Page, find_chromium
from made_rows import every_row, pictures_of, tables_of, write_rows
from megaclass.report.build import collect
from megaclass.report.page import write_page
from megaclass.results import published

REPORTED = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.loadingFailed")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: on the path, or named by $MEGACLASS_CHROMIUM"),
]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_rows(folder / "rows.jsonl", every_row())
    results = Path(__file__).parents[3] / "benchmarks" / "results"
    files = [str(path), str(results / "head-cpu.jsonl"), str(results / "loader-cpu.jsonl")]
    return collect(files, published.names()), write_page(files, folder, published.names())[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    opened = Page(find_chromium(), tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_sound(document, page, width, height, scheme):
    model, file = document
    page.show(width, height, scheme)
    page.open("about:blank")
    page.events.clear()
    page.open(file.as_uri())
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [width, True]
    tables = page.evaluate("[...document.querySelectorAll('table')].map(t => [t.id, t.rows.length])")
    assert tables == [[f"t{n}", len(t.lines) + 1] for n, t in enumerate(tables_of(model), start=1)]
    images = page.evaluate(
        "[...document.querySelectorAll('figure img')].map(s => [s.naturalWidth, s.getBoundingClientRect()])"
        ".map(([n, b]) => n > 0 && b.width > 200 && b.height > 100 && b.right <= innerWidth)"
    )
    assert len(pictures_of(model)) > 2 and images == [True] * len(pictures_of(model))
    broken = "[...document.links].map(a => a.hash.slice(1)).filter(id => !document.getElementById(id))"
    assert page.evaluate(broken) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{paper[4:-1]}]")) > 600) == (scheme == "light")
    requests = [what["request"]["url"] for name, what in page.events if name == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert [event for event in page.events if event[0] in REPORTED] == []


def test_a_number_leads_to_its_raw_row_and_opens_it(document, page):
    _, file = document
    page.show(1280, 900, "light")
    page.open(file.as_uri())
    found = page.evaluate(
        "(async () => { const link = document.querySelector('td a'); link.click();"
        " await new Promise(done => setTimeout(done, 300));"
        " const row = document.querySelector(link.hash);"
        " return [row.open, row.querySelector('pre').checkVisibility(),"
        " JSON.parse(row.querySelector('pre').textContent).samples_ms.length > 0]; })()"
    )
    assert found == [True, True, True]
