"""``megaclass bench NAME``: the command of every benchmark follows from what it declares."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaclass.bench.case import Benchmark
from megaclass.bench.flags import add_flags
from megaclass.cli.common import show_pictures, tell
from megaclass.cli.parsing import Parser, make_parser, parse, parse_with_settings, verb_asked
from megaclass.errors import UserError

_SUITE = "all cases of a published report, as published or scaled to this machine, and a page of them"
_LISTS = "LIST is one value or several with commas between: every combination is measured, in processes of its own."
_OUTPUT = "file in .jsonl to which a row is appended for each measurement; the same command goes on from there"
_NVIDIA = "; a name in .json gets a report in the shape of NVIDIA's ResNet-50 script, and rows beside it"


def bench(words: list[str]) -> int | None:
    from megaclass.bench import BENCHMARKS

    helps = {name: benchmark.help for name, benchmark in BENCHMARKS.items()} | {"suite": _SUITE}
    if not verb_asked("bench", helps, words, "benchmark"):
        return None
    if words[0] != "suite":
        rows = _run(BENCHMARKS[words[0]], words[1:])
    else:
        rows = _suite(words[1:])
    return 1 if rows and all(row.status != "ok" for row in rows) else None


def _run(benchmark: Benchmark, words: list[str]) -> list[Any]:
    """Measure, print the tables, and write what else the benchmark leaves. Returns the rows."""
    options = options_of(benchmark, words)

    from megaclass.bench.sweep import plan
    from megaclass.report import nvidia

    asked = Path(options.output)
    as_nvidia = benchmark.name == "train" and asked.suffix == ".json"
    found = plan(benchmark, options)
    if as_nvidia:
        options.output = str(asked.with_suffix(".jsonl"))
        nvidia.check_report(asked, [one.case for one in found])
    rows = _measured(found, options)
    if as_nvidia:
        nvidia.write_report(asked, rows, options.mode)
        tell(f"report in {asked}")
    if benchmark.name == "stability":
        show_pictures("draw_seeds", Path(options.output).parent, rows)
    return rows


def options_of(benchmark: Benchmark, words: list[str]) -> Any:
    """What was said: of a case's field by its name, and ``settings`` by ``section.key``."""
    parser = make_parser(f"megaclass bench {benchmark.name} [...] [--output FILE.jsonl]", f"{benchmark.help}. {_LISTS}")
    add_flags(parser, benchmark.case)
    benchmark.flags(parser)
    _add_sweep(parser, _OUTPUT + (_NVIDIA if benchmark.name == "train" else ""), benchmark.timeout_s)
    if benchmark.settings:
        options, settings = parse_with_settings(parser, words)
        options.settings = {
            f"{section}.{key}": value for section, values in settings.items() for key, value in values.items()
        }
    else:
        options = parse(parser, words)
    if not options.timeout > 0:
        raise UserError(f"--timeout: {options.timeout:g} is not a positive number of seconds")
    return options


def _add_sweep(parser: Parser, output: str, timeout_s: float = 600.0) -> None:
    limit = "seconds that an implementation may take for a case"
    parser.add_argument("--timeout", type=float, default=timeout_s, help=limit)
    parser.add_argument("-o", "--output", default="", help=output)
    again = "measure what the file has rows of already, too, and append it"
    parser.add_argument("--again", action="store_true", help=again)


def _measured(found: Sequence[Any], options: Any, heading: Any = None) -> list[Any]:
    from rich.console import Console

    from megaclass.bench.sweep import sweep
    from megaclass.report import own

    rows: list[Any] = sweep(found, options.output, options.timeout, again=options.again, heading=heading)
    Console(highlight=False).print(own.console_tables(rows))
    return rows


def options_of_suite(words: list[str]) -> Any:
    from megaclass.bench import suite

    parser = make_parser(
        "megaclass bench suite [NAME] [--fit] [--output DIR] [...]",
        "Measure every case of a published report, into DIR/rows.jsonl, and write a report of them beside the "
        "published numbers. With --fit what this machine cannot hold is scaled down or left out, and it says what and "
        "why. Without a name it lists the suites.",
    )
    suite.flags(parser)
    _add_sweep(parser, "directory of rows and report; default: runs/suite-NAME")
    return parse(parser, words)


def _suite(words: list[str]) -> list[Any]:
    options = options_of_suite(words)
    if not options.name:
        _list_suites()
        return []
    directory = Path(options.output or Path("runs") / f"suite-{options.name}")

    from rich.console import Console

    from megaclass.bench import suite
    from megaclass.report import own, page

    found = suite.plan(options)
    heading = own.plan_tables(found)
    if options.plan:
        Console(highlight=False).print(heading)
        return []
    page.require_room(directory)  # before hours of measuring
    options.output = str(directory / f"rows{'-' * bool(options.part)}{options.part.partition('/')[0]}.jsonl")
    rows = _measured(found, options, heading)
    for path in () if options.part else page.write_page([str(directory)], directory):
        tell(str(path))
    return rows


def _list_suites() -> None:
    from megaclass.results import published

    for name in published.names():
        found = published.load(name)
        rows = sum(len(part.rows) for part in found.tables)
        print(f"  {name:23} {len(found.cases()):3} cases, {rows:3} rows  {found.title}")
    print("\n`megaclass bench suite NAME --fit` measures what this machine can; `--plan` shows it first.")
