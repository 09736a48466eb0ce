"""Two measurements of the same cases: which rows stand beside one another, the table, and the exit status."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from megaclass.cli import main
from megaclass.errors import UserError
from megaclass.report.comparison import compare_rows
from megaclass.rows import Row, RowWriter, timed
from megaclass.verdict import EQUAL, SLOWER

FIXTURES = Path(__file__).parents[2] / "fixtures" / "compare"
STEPS = [10 + i % 7 / 100 for i in range(40)]
HERE = {"system": "Board 1", "cpu": "CPU 1", "gpu": None, "gpu_count": 0, "revision": "a"}


def row(batch=8, factor=1.0, **changes):
    fields = {
        "implementation": "megaclass",
        "benchmark": "train",
        "case": {"recipe": "tiny", "global_batch_size": batch, "settings": {}},
        "status": "ok",
        "memory_mb": {"allocated": None, "process": 100.0},
        "environment": HERE,
        **timed([factor * step for step in STEPS], batch),
    }
    return Row(**fields | changes)


def lost(status="oom", **changes):
    return row(
        status=status, reason="why it was", samples_ms=[], step_ms={}, samples_per_second=None, **changes
    )


def words(earlier, later, **options):
    pairs = compare_rows(earlier, later, **options).pairs
    return [pair.verdict.word if pair.verdict else pair.later.status for pair in pairs]


@pytest.fixture
def files(tmp_path):
    """Writes rows to a file of that name; returns its path as text."""

    def write(name, *rows):
        path = tmp_path / name
        with RowWriter(path) as writer:
            for one in rows:
                writer.write(one)
        return str(path)

    return write


# -- which rows stand beside one another ----------------------------------------------------------------


def test_cases_are_matched_whatever_their_order():
    earlier, later = [row(8), row(16)], [row(16, 1.2), row(8), row(32)]
    found = compare_rows(earlier, later)
    assert [pair.later.case["global_batch_size"] for pair in found.pairs] == [8, 16]
    assert words(earlier, later) == [EQUAL, SLOWER]
    assert (found.only_earlier, found.only_later) == (0, 1) and compare_rows(later, earlier).only_earlier == 1


def test_another_implementation_or_benchmark_is_another_case():
    others = [row(implementation="arcface_torch"), row(benchmark="infer")]
    with pytest.raises(UserError, match="no case in common: 1 case earlier, 2 cases later"):
        compare_rows([row()], others)


def test_the_last_ok_row_of_a_case_counts():
    assert words([row(factor=9), row(), lost()], [row(factor=9), lost(), row(factor=1.2), lost()]) == [SLOWER]


def test_a_case_that_never_was_ok_is_not_compared():
    with pytest.raises(UserError, match="no case in common"):
        compare_rows([lost()], [row()])


@pytest.mark.parametrize("status", ["oom", "failed", "timeout"])
def test_a_case_that_is_no_longer_measured_is_told(status):
    assert words([row()], [lost(status)]) == [status]


def test_a_failed_row_lacks_what_only_a_finished_measurement_knows():
    finished = row(case={"recipe": "tiny", "version": "1.2"}, key="k1")
    assert words([finished], [lost(case={"recipe": "tiny"})]) == ["oom"]
    assert words([finished], [lost(case={"recipe": "tiny"}, key="k1")]) == ["oom"]
    for other in (lost(case={"recipe": "tiny"}, key="k2"), lost(case={"recipe": "large"})):
        with pytest.raises(UserError, match="no case in common"):
            compare_rows([finished], [other])


@pytest.mark.parametrize("name", ["system", "cpu", "gpu", "gpu_count"])
def test_rows_of_different_machines_are_refused(name):
    other = row(factor=1.2, environment=HERE | {name: "another"})
    with pytest.raises(
        UserError, match=rf"different machines: {name} was .*, then another; --allow-other-machine"
    ):
        compare_rows([row()], [other])
    assert words([row()], [other], other_machine=True) == [SLOWER]


def test_another_revision_on_the_same_machine_is_what_is_compared():
    without = {name: value for name, value in HERE.items() if name != "gpu_count"} | {"revision": "b"}
    assert words([row()], [row(environment=without)]) == [EQUAL]


def test_samples_that_are_no_times_are_refused():
    with pytest.raises(
        UserError, match=r"samples_ms of train megaclass recipe tiny.*: not all of them are times"
    ):
        compare_rows([row()], [dataclasses.replace(row(), samples_ms=[1.0, None])])


def test_memory_is_that_of_the_gpu_or_of_the_process():
    gpu = [row(memory_mb={"allocated": mb, "process": 9.0}) for mb in (100.0, 125.0)]
    (pair,) = compare_rows(gpu[:1], gpu[1:]).pairs
    assert pair.memory_ratio == 1.25 and pair.needs_more(0.2) and not pair.needs_more(0.25)
    (pair,) = compare_rows(gpu[:1], [row(memory_mb={"process": 18.0})]).pairs
    assert pair.memory_ratio == 2
    (pair,) = compare_rows(gpu[:1], [row(memory_mb={})]).pairs
    assert pair.memory_ratio is None and not pair.needs_more(0)


# -- the command ------------------------------------------------------------------------------------------


def test_recorded_runs_of_one_program_do_not_fail_a_build(capsys):
    plain = [str(path) for path in sorted(FIXTURES.glob("plain-*.jsonl"))]
    for earlier, later in itertools.pairwise(plain):
        assert main(["compare", earlier, later, "--fail-if-slower", "5%"]) == 0
    assert "1 equal" in capsys.readouterr().out


@pytest.mark.parametrize("number", range(1, 5))
def test_a_recorded_sleep_in_the_loader_fails_a_build(number, capsys):
    for plain in (1, 8):
        files = [str(FIXTURES / f"{name}.jsonl") for name in (f"plain-{plain}", f"slow-{number}")]
        assert main(["compare", *files, "--fail-if-slower", "5%"]) == 1
        assert "1 case: 1 slower by more than 5%" in capsys.readouterr().out
    assert main(["compare", *files]) == 0  # only a report
    assert main(["compare", *files[::-1], "--fail-if-slower=5%"]) == 0


def test_a_case_in_a_line_and_what_is_the_same_once(files, capsys):
    earlier = files("a.jsonl", row(8), row(16), row(32), row(64))
    grown = row(16, 1.2, memory_mb={"process": 150.0}, cpu_wait_percent=None)
    later = files("b.jsonl", row(8), grown, lost(case=row(32).case), row(1))
    assert main(["compare", earlier, later, "--fail-if-more-memory", "10%"]) == 1
    lines = capsys.readouterr().out.splitlines()
    texts = [" ".join(line.split()) for line in lines]
    assert texts[1] == "train megaclass global batch 8 10.03 10.03 1.00 (0.99 to 1.01) +0.0% equal"
    assert texts[2].startswith("train megaclass global batch 16 10.03 12.04 1.20 (1.19 to 1.21)")
    assert texts[2].endswith("+50.0% slower; more memory")
    assert texts[3] == "train megaclass global batch 32 10.03 oom: why it was"
    assert lines[4:] == [
        "The same in all: recipe tiny, settings none.",
        "Not compared: 1 case that only the earlier rows have.",
        "Not compared: 1 case that only the later rows have.",
        "3 cases: 1 equal, 1 slower by more than 5%, 1 no longer measured",
    ]


@pytest.mark.parametrize(
    ("later", "options", "status"),
    [
        (row(factor=1.2), [], 0),
        (row(factor=1.2), ["--fail-if-slower", "5%"], 1),
        (row(factor=1.2), ["--fail-if-slower", "30%"], 0),
        (row(factor=0.8), ["--fail-if-slower", "5%"], 0),
        (row(factor=1.02), ["--fail-if-slower", "0.5%"], 1),
        (lost("timeout"), [], 0),
        (lost("timeout"), ["--fail-if-slower", "5%"], 1),
        (row(memory_mb={"process": 120.0}), ["--fail-if-slower", "5%"], 0),
        (row(memory_mb={"process": 120.0}), ["--fail-if-more-memory", "25%"], 0),
        (row(memory_mb={"process": 120.0}), ["--fail-if-more-memory", "19.5%"], 1),
        (row(factor=1.2), ["--fail-if-more-memory", "5%"], 0),
        (row(environment={}), ["--fail-if-slower", "5%"], 2),
        (row(environment={}), ["--fail-if-slower", "5%", "--allow-other-machine"], 0),
        (row(batch=16), [], 2),
    ],
)
def test_the_exit_status(files, later, options, status):
    assert main(["compare", files("a.jsonl", row()), files("b.jsonl", later), *options]) == status


@pytest.mark.parametrize("text", ["5", "x%", "%", "nan%", "inf%", "5%%", "0.05"])
@pytest.mark.parametrize("flag", ["--fail-if-slower", "--fail-if-more-memory"])
def test_a_threshold_is_a_percentage(files, capsys, flag, text):
    assert main(["compare", files("a.jsonl", row()), files("b.jsonl", row()), flag, text]) == 2
    assert (
        capsys.readouterr().err
        == f"megaclass: error: {flag}: {text!r} is no percentage from 0%; write it as 5%\n"
    )


def test_a_directory_stands_for_its_rows(files, tmp_path):
    for name, factor in (("a", 1.0), ("b", 1.2)):
        (tmp_path / name).mkdir()
        files(f"{name}/rows.jsonl", row(factor=factor))
    sides = [str(tmp_path / name) for name in "ab"]
    assert main(["compare", *sides, "--fail-if-slower", "5%"]) == 1
    assert main(["compare", sides[0], str(tmp_path / "a/rows.jsonl"), "--fail-if-slower", "5%"]) == 0


def test_what_cannot_be_read_is_one_line(files, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jsonl").write_text("steps\n")
    good = files("a.jsonl", row())
    for bad in ("missing.jsonl", "empty", "text.jsonl"):
        for sides in ((good, str(tmp_path / bad)), (str(tmp_path / bad), good)):
            assert main(["compare", *sides]) == 2
            assert bad in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_a_busy_machine_is_told(files, capsys):
    busy = row(cpu_wait_percent=63.0)
    assert main(["compare", files("a.jsonl", row()), files("b.jsonl", busy)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "busy in 1 measurement (processors were waited for in up to 63% of the time)" in out


def test_the_help_says_what_a_threshold_is(capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", "--help"])
    assert end.value.code == 0 and "--fail-if-slower 5%]" in capsys.readouterr().out
