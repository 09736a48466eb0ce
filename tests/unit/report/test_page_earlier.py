"""New results beside earlier ones of one's own."""

import pytest

from made_rows import INFER, LAPTOP, SERVER, row
from megaclass.report.page.measures import MOST_JUDGED, steps
from page_documents import column, document_of, table_of, texts


def test_a_case_of_both_has_its_ratio_with_an_interval(tmp_path):
    new = [row("infer", INFER, 2.0), row("infer", INFER | {"batch_size": 8}, 2.0)]
    document = document_of(tmp_path, new, earlier=[row("infer", INFER, 3.0, seed=1)])
    table = table_of(document, "infer: 8 x Testcard T1 80GB")
    (ratio,) = column(table, "Ratio")
    assert ratio.value == pytest.approx(1.5, rel=0.03)
    low, high = (float(part) for part in ratio.text.split("(")[1].rstrip(")").split(" to "))
    assert low < ratio.value < high
    assert [s.path.name for s in ratio.sources] == ["rows.jsonl", "earlier.jsonl"]
    assert column(table, "Earlier")[0].value == pytest.approx(333, rel=0.03)
    assert column(table, "New")[0].value == pytest.approx(500, rel=0.03)


def test_machines_that_differ_stand_side_by_side_without_a_ratio(tmp_path):
    earlier = [row("infer", INFER, 3.0, environment=LAPTOP)]
    document = document_of(tmp_path, [row("infer", INFER, 2.0)], earlier=earlier)
    table = table_of(document, "infer: different machines")
    assert not [c for c in table.columns if c.title.startswith("Ratio")]
    assert column(table, "Earlier machine")[0].text == "Testchip 9000, 2 threads"
    assert column(table, "New machine")[0].text == "8 x Testcard T1 80GB"
    assert [t.title for t in document.tables() if t.title.startswith("Server spec")] == [
        "Server spec: 8 x Testcard T1 80GB",
        "Server spec: Testchip 9000, 2 threads",
    ]


def test_the_same_machine_goes_before_others(tmp_path):
    earlier = [row("infer", INFER, 3.0, environment=e) for e in (LAPTOP, SERVER)]
    document = document_of(tmp_path, [row("infer", INFER, 2.0)], earlier=earlier)
    assert table_of(document, "infer: 8 x Testcard T1 80GB").lines
    assert not [t for t in document.tables() if "different machines" in t.title]


def test_the_number_of_steps_makes_no_other_case(tmp_path):
    earlier = [row("infer", INFER | {"iterations": 5, "calls": 7}, 3.0)]
    new = [row("infer", INFER | {"iterations": 50, "calls": 3}, 2.0)]
    document = document_of(tmp_path, new, earlier=earlier)
    assert column(table_of(document, "infer: 8 x Testcard"), "Ratio")[0].value == pytest.approx(1.5, rel=0.03)


def test_of_several_earlier_rows_the_latest_counts(tmp_path):
    earlier = [row("infer", INFER, ms, measured_at=f"2025-01-0{day}") for day, ms in ((2, 4.0), (1, 9.0))]
    document = document_of(tmp_path, [row("infer", INFER, 2.0)], earlier=earlier)
    (ratio,) = column(table_of(document, "infer:"), "Ratio")
    assert ratio.value == pytest.approx(2.0, rel=0.03)


def test_cases_of_one_side_alone_are_counted_only(tmp_path):
    document = document_of(
        tmp_path, [row("infer", INFER, 2.0)], earlier=[row("infer", INFER | {"batch_size": 8}, 3.0)]
    )
    section = next(section for section in document.sections if section.title.startswith("Against"))
    assert section.blocks[0].startswith("0 of 1 cases were measured before") and len(section.blocks) == 1


def test_earlier_rows_stand_nowhere_else(tmp_path):
    earlier = [row("infer", INFER | {"batch_size": 8}, 3.0)]
    document = document_of(tmp_path, [row("infer", INFER, 2.0)], earlier=earlier)
    assert len(texts(table_of(document, "Inference:"))) == 1
    assert [cell.text for cell in column(table_of(document, "What was measured"), "Rows")] == ["1"]


def test_a_case_that_several_machines_measured_before_counts_once(tmp_path):
    earlier = [row("infer", INFER, 3.0, environment=LAPTOP | {"system": name}) for name in ("a", "b")]
    document = document_of(tmp_path, [row("infer", INFER, 2.0)], earlier=earlier)
    assert any(isinstance(b, str) and b.startswith("1 of 1 cases were measured") for b in document.blocks())


def test_of_very_many_steps_every_so_many_th_is_judged():
    one = row("infer", INFER, 2.0, steps=MOST_JUDGED + 1)
    assert list(steps(one).samples_ms) == one.samples_ms[::2]
    few = row("infer", INFER, 2.0, steps=50)
    assert list(steps(few).samples_ms) == few.samples_ms
