"""Two measurements of the same cases: which rows stand beside one another, the table, and the exit status."""

from pathlib import Path

import pytest

from made_rows import write_rows
from megaclass.cli import main
from megaclass.errors import UserError
from megaclass.report.comparison import compare_sources
from megaclass.report.sources import Source
from megaclass.results.rows import Row, timed
from megaclass.results.verdict import EQUAL, SLOWER

FIXTURES = Path(__file__).parents[2] / "fixtures" / "compare"
STEPS = [10 + i % 7 / 100 for i in range(80)]
HERE = {"system": "Board 1", "cpu": "CPU 1", "gpu": None, "gpu_count": 0, "revision": "a"}
LOST = "no longer measured"


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
    empty = {"samples_ms": [], "step_ms": {}, "samples_per_second": None}
    return row(status=status, reason="why it was", **empty | changes)


def compared(earlier, later, **options):
    sides = ([Source(Path(), n, one, n) for n, one in enumerate(rows, start=1)] for rows in (earlier, later))
    return compare_sources(*sides, **options)


def words(earlier, later, **options):
    return [pair.word for pair in compared(earlier, later, **options)]


@pytest.fixture
def files(tmp_path):
    """Writes rows to a file of that name; returns its path as text."""

    def write(name, *rows):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        return str(write_rows(tmp_path / name, rows))

    return write


# -- which rows stand beside one another ----------------------------------------------------------------


def _of(**case):
    return {"case": {"recipe": "tiny", **case}}


MATCHES = {
    "in any order": ([row(8), row(16)], [row(16, 1.2), row(8), row(32)], [EQUAL, SLOWER]),
    "the last ok row": ([row(factor=9), row(), lost()], [row(factor=9), lost(), row(factor=1.2), lost()], [SLOWER]),
    "no longer measured": ([row(8), row(16)], [row(8)], [EQUAL, LOST]),
    "failed since": ([row()], [lost("timeout")], [LOST]),
    "another number of steps": ([row(**_of(iterations=40))], [row(1, 1.2, **_of(iterations=30))], [SLOWER]),
    "another revision": ([row()], [row(environment=HERE | {"revision": "b"})], [EQUAL]),
    "a count of no GPU left out": ([row()], [row(environment=HERE | {"gpu_count": None})], [EQUAL]),
}  # fmt: skip


@pytest.mark.parametrize("name", MATCHES)
def test_which_rows_are_one_case(name):
    earlier, later, expected = MATCHES[name]
    assert words(earlier, later) == expected


@pytest.mark.parametrize("name", ["cpu", "memory_mb"])
def test_rows_of_different_machines_are_refused(name):
    other = row(factor=1.2, environment=HERE | {name: "another\x1b[2J"})
    told = name.replace("memory_mb", "memory in GiB")
    with pytest.raises(UserError, match=rf"machines: {told} was .*, then another\\x1b\[2J; --allow-other-machine"):
        compared([row()], [other])
    assert words([row()], [other], other_machine=True) == [SLOWER]


def test_memory_is_that_of_the_gpu_or_of_the_process():
    gpu = [row(memory_mb={"allocated": mb, "process": 9.0}) for mb in (100.0, 125.0)]
    (pair,) = compared(gpu[:1], gpu[1:])
    assert pair.memory_ratio == 1.25 and pair.needs_more(0.2) and not pair.needs_more(0.25)
    for memory, ratio in (({"process": 18.0}, 2), ({}, None)):
        (pair,) = compared(gpu[:1], [row(memory_mb=memory)])
        assert pair.memory_ratio == ratio


# -- the command ------------------------------------------------------------------------------------------


def test_a_recorded_sleep_in_the_loader_fails_a_build(told):
    files = [str(FIXTURES / f"{name}.jsonl") for name in ("plain-1", "slow-1")]
    assert "1 case: 1 slower by more than 5%" in told("compare", *files, "--fail-if-slower", "5%", status=1)
    assert main(["compare", *files]) == 0  # only a report
    assert main(["compare", *files[::-1], "--fail-if-slower=5%"]) == 0


def test_a_case_in_a_line_and_what_is_the_same_once(told, files):
    earlier = files("a.jsonl", row(8), row(16), row(32), row(64))
    grown = row(16, 1.2, memory_mb={"process": 150.0}, cpu_wait_percent=None)
    later = files("b.jsonl", row(8), grown, lost(case=row(32).case), row(1))
    said = told("compare", earlier, later, "--fail-if-more-memory", "10%", status=1)
    found = [" ".join(line.split()) for line in said.splitlines()]
    assert found[1].startswith("8 10.03 10.03 1.00 (1.00 to 1.00) +0.0% equal")
    assert found[2].startswith("16 10.03 12.04 1.20 (1.20 to 1.20) +50.0% slower; more memory")
    assert [line[:24] for line in found[3:5]] == ["32 10.03 no longer measu", "64 10.03 no longer measu"]
    assert "The same in all: recipe tiny." in found
    assert any("oom: why it was" in line for line in found) and any("not in the later" in line for line in found)
    assert found[-1] == "4 cases: 1 equal, 1 slower by more than 5%, 2 no longer measured"


SLOW, MORE = ["--fail-if-slower", "5%"], {"memory_mb": {"process": 120.0}}


@pytest.mark.parametrize(
    ("later", "options", "status"),
    [
        ([row(factor=1.2)], [], 0),
        ([row(factor=1.2)], SLOW, 1),
        ([row(factor=1.2)], ["--fail-if-slower", "30%"], 0),
        ([lost("timeout")], SLOW, 1),
        ([row(**MORE)], SLOW, 0),
        ([row(**MORE)], ["--fail-if-more-memory", "19.5%"], 1),
        ([row(environment={})], SLOW, 2),
        ([row(environment={})], [*SLOW, "--allow-other-machine"], 0),
        ([row(batch=16)], [], 2),
        ([lost("oom")], [*SLOW, "--allow-missing"], 1),
        ([], SLOW, 1),
        ([], [*SLOW, "--allow-missing"], 0),
        ([row(cpu_wait_percent=60.0, factor=3)], SLOW, 0),
        ([row(cpu_wait_percent=60.0)], ["--fail-if-unclear"], 1),
    ],
)
def test_the_exit_status(files, tmp_path, later, options, status):
    files("a/rows.jsonl", row(), *([] if later else [row(16)]))
    files("b/rows.jsonl", *(later or [row()]))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *options]) == status


@pytest.mark.parametrize(
    ("flag", "text"),
    [("--fail-if-slower", "5"), ("--fail-if-more-memory", "nan%"), ("--fail-if-slower", "x%")],
)
def test_a_threshold_is_a_percentage(refused, files, flag, text):
    words = ["compare", files("a.jsonl", row()), files("b.jsonl", row()), flag, text]
    refused(words, f"argument {flag}: {text!r} is no percentage from 0%; write it as 5%")
