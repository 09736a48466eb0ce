"""``megaclass bench suite``: the cases of a published report."""

from pathlib import Path
from typing import Any

from megaclass.cli.bench.sweep import options_of_sweep, show
from megaclass.cli.parsing import make_parser, parse
from megaclass.errors import UserError


def suite(words: list[str]) -> None:
    parser = make_parser(
        "megaclass bench suite [NAME] [--fit] [--output DIR] [...]",
        "Measure every case of a published report, into DIR/rows.jsonl, and write a report of them beside the "
        "published numbers. With --fit what this machine cannot hold is scaled down or left out, and it says what and "
        "why. Without a name it lists the suites.",
    )
    options_of_suite(parser)
    options = parse(parser, words)
    if not options.name:
        _list()
        return
    directory = _directory(options)

    from megaclass.bench.old_suite.plan import planned
    from megaclass.report.page import collect, require_room, write
    from megaclass.report.suite import comparisons, plan_table, suite_tables

    plan = planned(options)
    if options.plan:
        _print(plan_table(plan))
        return
    require_room(directory)  # before hours of measuring
    options.output = str(directory / "rows.jsonl")
    show(plan, options, comparisons, suite_tables, heading=plan_table(plan))
    for path in write(collect([str(directory)], []), directory):
        print(path)


def options_of_suite(parser: Any) -> None:
    """The options of ``bench suite``."""
    parser.add_argument(
        "name", nargs="?", type=str, default="", help="of the suite; without it they are listed"
    )
    flags = {
        "fit": "scale the cases down to this machine and to --minutes, and leave out what cannot be measured here",
        "simulate-ranks": "one process does one rank's share of a job of several devices (with --fit margin heads do "
        "so anyway where devices are missing)",
        "whole-job": "one device does the work of all devices of a job, instead",
        "plan": "show what would be measured, and why what not, and measure nothing",
    }
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    others = {
        "minutes": (8.0, "that all cases together may take, roughly, with --fit"),
        "only": ("", "cases of one benchmark: train or infer"),
        "engine": ("eager", "of inference: eager, compiled, cudagraph or onnx"),
        "storage": ("", "of centres and momentum: fp32, bf16, .. (default: the recipe's)"),
        "data-root": (
            "",
            "record set, folder of class folders, or a directory with train/ and val/; default: synthetic",
        ),
        "iterations": (
            0,
            "steps of an epoch; 0: 500 as NVIDIA's reports, 100 elsewhere, with --fit as time allows",
        ),
        "device": ("auto", "auto, cpu or cuda"),
        "threads": (0, "of each process on a CPU; 0: its share of the cores"),
        "seed": (0, "of weights, images and labels"),
    }
    for name, (value, text) in others.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
    options_of_sweep(parser, output="directory of rows and report; default: runs/suite-NAME")


def _directory(options: Any) -> Path:
    directory = Path(options.output or Path("runs") / f"suite-{options.name}")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output: {directory} is a file; name a directory")
    return directory


def _list() -> None:
    from rich.table import Table

    from megaclass.results import published

    table = Table("suite", "report", "cases", "rows", box=None)
    for name in published.names():
        report = published.load(name)
        rows = sum(len(part.rows) for part in report.tables)
        table.add_row(name, report.title, str(len(report.cases())), str(rows))
    _print(table)
    print("\n`megaclass bench suite NAME --fit` measures what this machine can; `--plan` shows it first.")


def _print(thing: object) -> None:
    from rich.console import Console

    Console(highlight=False).print(thing)
