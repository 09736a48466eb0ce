"""Two measurements of the same cases: which rows stand beside one another, the table, and the exit status."""

import dataclasses
import io
import itertools
from pathlib import Path

import pytest
from rich.console import Console

from megaclass.cli import main
from megaclass.errors import UserError
from megaclass.report.comparison import compare_rows, comparison_table
from megaclass.results.rows import Row, RowWriter, timed
from megaclass.results.verdict import EQUAL, SLOWER

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
    assert (found.missing, found.only_later) == ([], 1)
    assert [one.earlier.case for one in compare_rows(later, earlier).missing] == [row(32).case]


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


@pytest.mark.parametrize("name", ["iterations", "epochs", "warmup", "steps", "calls"])
def test_how_often_a_case_was_measured_does_not_make_it_another(name):
    def measured(count, factor=1.0):
        return row(case={"recipe": "tiny", name: count}, factor=factor)

    assert words([measured(40)], [measured(30, 1.2)]) == [SLOWER]
    assert words([measured(40)], [lost(case={name: 30})]) == ["oom"]
    assert words([measured(40), measured(50)], [measured(60)]) == [EQUAL]


def test_what_a_suite_fitted_otherwise_is_told():
    def suite(batch, asked=1024, factor=1.0, **changes):
        case = {"recipe": "tiny", "global_batch_size": batch, "iterations": batch}
        wanted = case | {"global_batch_size": asked, "iterations": 500}
        return row(case=case, asked=wanted if wanted != case else {}, suite="s", factor=factor, **changes)

    same = row()
    for earlier, later in ((suite(64), suite(32)), (suite(64), suite(1024)), (suite(1024), suite(64))):
        found = compare_rows([same, earlier], [same, later])
        sides = f"{earlier.case['global_batch_size']:,} → {later.case['global_batch_size']:,}"
        (missing,) = found.missing
        assert missing.earlier is earlier
        assert missing.reason == f"the suite was fitted otherwise (global batch {sides})"
        with pytest.raises(
            UserError, match=r"no case in common.*; 1 case not compared: the suite was fitted"
        ):
            compare_rows([earlier], [later])
    console = Console(width=200, file=io.StringIO())
    console.print(comparison_table(found))
    assert "Not compared: 1 case of a suite that was fitted otherwise." in console.file.getvalue()
    assert words([suite(64)], [suite(64, factor=1.2)]) == [SLOWER]
    (missing,) = compare_rows([same, suite(64)], [same, suite(32, asked=512)]).missing
    assert missing.reason == "not in the later rows"


@pytest.mark.parametrize(
    ("name", "told"),
    [(name, name) for name in ("system", "cpu", "cpu_threads", "gpu", "gpu_count")]
    + [("memory_mb", "memory in GiB")],
)
def test_rows_of_different_machines_are_refused(name, told):
    other = row(factor=1.2, environment=HERE | {name: "another\x1b[2J"})
    with pytest.raises(
        UserError, match=rf"different machines: {told} was .*, then another\ufffd\[2J; --allow-other-machine"
    ):
        compare_rows([row()], [other])
    assert words([row()], [other], other_machine=True) == [SLOWER]


def test_the_last_megabyte_of_memory_makes_no_other_machine():
    sides = [row(environment=HERE | {"memory_mb": mb}) for mb in (16000, 16003)]
    assert words(sides[:1], sides[1:]) == [EQUAL]


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
    assert texts[4] == "train megaclass global batch 64 10.03 no longer measured: not in the later rows"
    assert lines[5:] == [
        "The same in all: recipe tiny, settings none.",
        "Not compared: 1 case that only the later rows have.",
        "4 cases: 1 equal, 1 slower by more than 5%, 2 no longer measured",
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
        (row(batch=16), ["--fail-if-slower", "5%", "--allow-missing"], 2),
        (lost("oom"), ["--fail-if-slower", "5%", "--allow-missing"], 1),
        (row(cpu_wait_percent=60.0, factor=3), ["--fail-if-slower", "5%"], 0),
        (row(cpu_wait_percent=60.0), ["--fail-if-unclear"], 1),
        (row(), ["--fail-if-unclear"], 0),
        (row(factor=1.2), ["--fail-if-unclear"], 0),
    ],
)
def test_the_exit_status(files, later, options, status):
    assert main(["compare", files("a.jsonl", row()), files("b.jsonl", later), *options]) == status


@pytest.mark.parametrize(
    ("options", "status"),
    [([], 0), (["--fail-if-slower", "5%"], 1), (["--fail-if-slower", "5%", "--allow-missing"], 0)],
)
def test_a_case_that_is_not_there_any_more_fails_a_build(files, capsys, options, status):
    sides = files("a.jsonl", row(8), row(16)), files("b.jsonl", row(8))
    assert main(["compare", *sides, *options]) == status
    assert "2 cases: 1 equal, 1 no longer measured" in capsys.readouterr().out


def test_rows_that_somebody_wrote_command_no_terminal(files, capsys):
    bad = {
        "implementation": "a\x1b[31mb",
        "case": {"recipe": "\x1b]0;title\x07\u202e"},
        "step_ms": {"p50": "x"},
    }
    gone = row(batch=16, step_ms={"p50": "x"})
    earlier = files("a.jsonl", row(**bad), row(**bad | {"benchmark": "infer"}), gone)
    later = lost(**{name: bad[name] for name in ("implementation", "case")})
    assert main(["compare", earlier, files("b.jsonl", row(**bad | {"benchmark": "infer"}), later)]) == 0
    out = capsys.readouterr().out
    assert "a\ufffd[31mb" in out and all(c.isprintable() or c == "\n" for c in out)


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
    assert "unclear: other programs were busy, measure again" in out


def test_the_help_says_what_a_threshold_is(capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and "--fail-if-slower 5%]" in out and "no longer measured" in out
    assert "--allow-missing" in out and "--fail-if-unclear" in out
