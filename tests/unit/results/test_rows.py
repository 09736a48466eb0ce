"""The file of rows: appended to, never overwritten, and refused where it is something else."""

import json

import pytest

from megaclass.errors import UserError
from megaclass.results.rows import SCHEMA_VERSION, Row, RowWriter, read_rows, timed

OK = Row(
    implementation="megaclass",
    benchmark="head",
    case={"num_classes": 10},
    status="ok",
    memory_mb={"process": 1.5, "allocated": None},
    **timed([2.0, 1.0, 3.0], batch_rows=8),
)
OOM = Row(implementation="peer", benchmark="head", case={}, status="oom", reason="no memory")


def write(path, *rows):
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, OK)
    write(path, OOM)
    assert read_rows(path) == [OK, OOM]
    assert all(json.loads(line)["schema_version"] == SCHEMA_VERSION for line in path.read_text().splitlines())


def test_what_a_kill_has_cut_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, OK, OOM)
    for end in (-1, -20, len(path.read_bytes().splitlines(keepends=True)[0]) + 1):
        whole = path.read_bytes()
        path.write_bytes(whole[:end])
        assert read_rows(path) == [OK]
        write(path, OOM)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize(
    "text", ["some notes", '{"event": "start"}', '{"schema_version": 2, "my": "data"}', "[1]", "\xff"]
)
def test_other_files_are_refused_and_left_alone(tmp_path, text, end):
    path = tmp_path / "notes.txt"
    path.write_bytes((text + end).encode("latin1"))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"notes\.txt"):
        RowWriter(path)
    assert path.read_bytes() == before


def test_a_directory_that_is_not_there_and_no_file_at_all(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        RowWriter(tmp_path / "nowhere" / "rows.jsonl")
    write("", OK)


def test_two_sweeps_do_not_write_into_one_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RowWriter(path), pytest.raises(UserError, match="another sweep"):
        RowWriter(path)
    write(path, OK)
    assert read_rows(path) == [OK]
