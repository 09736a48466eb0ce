"""Which rows a report reads, and what it refuses, in one line with exit status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import megaclass
from made_rows import INFER, LAPTOP, SERVER, row, write_rows
from megaclass.cli import main
from megaclass.errors import UserError
from megaclass.report.page import collect, write
from megaclass.report.page.sources import read_sources

ONE = row("infer", INFER, 2.0)


def test_a_directory_gives_all_its_rows_with_their_lines(tmp_path):
    write_rows(tmp_path / "b.jsonl", [ONE, ONE])
    write_rows(tmp_path / "a.jsonl", [ONE])
    sources, strangers = read_sources([tmp_path, tmp_path / "a.jsonl"])
    assert [(s.path.name, s.line, s.number) for s in sources] == [
        ("a.jsonl", 1, 1),
        ("b.jsonl", 1, 2),
        ("b.jsonl", 2, 3),
    ]
    assert not strangers


def test_other_json_lines_of_a_directory_are_left_aside_and_named(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [ONE])
    (tmp_path / "events.jsonl").write_text('{"event": "step"}\n')
    sources, strangers = read_sources([tmp_path])
    assert len(sources) == 1 and [path.name for path in strangers] == ["events.jsonl"]
    document = collect([str(tmp_path)])
    assert any("events.jsonl" in block for block in document.blocks() if isinstance(block, str))


def _line(**changes):
    record = {
        "schema_version": 2,
        "implementation": "megaclass",
        "benchmark": "x",
        "case": {},
        "status": "ok",
    }
    return json.dumps(record | changes) + "\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "no row of a benchmark"),
        ('{"event": "step"}\n', "line 1: not a row"),
        (_line() + "{\n", "line 2: not a line of JSON"),
        (_line() + _line(schema_version=99), "line 2: written with schema 99"),
        (_line(memory_mb=5), "line 1: not a row of a benchmark: memory_mb is not a dict"),
        (_line(samples_ms={}), "samples_ms is not a list"),
    ],
)
def test_bad_rows_end_with_one_line(tmp_path, capsys, content, told):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert main(["report", str(path)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_missing_file_an_empty_directory_and_an_unknown_name_are_told(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: cannot be read" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "no row of a benchmark" in capsys.readouterr().err
    rows = write_rows(tmp_path / "rows.jsonl", [ONE])
    assert main(["report", str(rows), "--against", "arcface-a10"]) == 2
    assert "did you mean 'arcface-a100'?" in capsys.readouterr().err


def test_a_newer_schema_in_a_directory_is_not_left_aside(tmp_path):
    (tmp_path / "rows.jsonl").write_text(_line(schema_version=99))
    with pytest.raises(UserError, match="update it"):
        read_sources([tmp_path])


def test_the_three_files_lie_beside_the_rows_and_are_replaced(tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [ONE])
    for _ in range(2):
        assert main(["report", str(rows), "--against", "resnet50-nvidia"]) == 0
        names = ["report.html", "report.md", "report.csv"]
        assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert main(["report", str(rows), "--output", str(tmp_path / "new" / "deep")]) == 0
    assert (tmp_path / "new" / "deep" / "report.html").exists()


def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [ONE])
    (tmp_path / "report.md").write_text("my own words")
    with pytest.raises(UserError, match=r"report\.md: exists and is not a report of ours"):
        write(collect([str(rows)]), tmp_path)
    assert (tmp_path / "report.md").read_text() == "my own words"
    assert not (tmp_path / "report.html").exists()


def test_the_suites_among_the_rows_stand_beside_their_published_tables_unasked(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [row("infer", INFER, 2.0, suite="resnet50-nvidia")])
    titles = [section.title for section in collect([str(rows)]).sections]
    assert any(title.startswith("Beside resnet50-nvidia") for title in titles)
    assert not any("arcface" in title for title in titles)


def test_a_report_needs_no_torch(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [ONE, row("infer", INFER, 9.0, environment=LAPTOP)])
    code = (
        f"import sys; sys.path.insert(0, {str(Path(megaclass.__file__).parent.parent)!r}); "
        "from megaclass.cli import main; "
        f"assert main(['report', {str(tmp_path)!r}, '--against', 'arcface-a100']) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_machines_of_the_rows_are_two(tmp_path):
    rows = [row("infer", INFER, 2.0, environment=environment) for environment in (SERVER, LAPTOP, SERVER)]
    document = collect([str(write_rows(tmp_path / "rows.jsonl", rows))])
    assert [t.title for t in document.tables() if t.title.startswith("Server spec")] == [
        "Server spec: 8 x Testcard T1 80GB",
        "Server spec: Testchip 9000, 2 threads",
    ]


def test_a_named_file_without_rows_is_left_aside_where_others_have_some(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [ONE])
    (tmp_path / "events.jsonl").write_text('{"event": "step"}\n')
    sources, strangers = read_sources([rows, tmp_path / "events.jsonl"])
    assert len(sources) == 1 and [path.name for path in strangers] == ["events.jsonl"]


def test_a_folder_is_no_file_of_rows_and_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    write_rows(tmp_path / "rows.jsonl", [ONE])
    assert len(read_sources([tmp_path])[0]) == 1
    with pytest.raises(UserError, match="neither a file nor a directory"):
        read_sources([tmp_path / "pipe.jsonl"])
