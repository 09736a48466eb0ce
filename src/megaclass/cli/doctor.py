"""``megaclass doctor``: a machine, a recipe and a run looked at before they cost time."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megaclass.cli.parsing import Given, make_parser, parse_with_settings
from megaclass.config import Config, from_mapping, load_recipe
from megaclass.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from megaclass.doctor.findings import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_MARK, _WHAT = 4, 13  # columns


def doctor(words: list[str]) -> int:
    parser = make_parser(
        "megaclass doctor [RECIPE|RUN] [--ranks N] [--repair] [--section.key VALUE ...]",
        "Look at this machine, and at what a recipe asks of it, or at a run directory: a line for each thing, with "
        "what to do where it is not well. Exit status 0: nothing fails; 1: something does.",
        options={
            "ranks": (0, "processes that are to train together; 0: WORLD_SIZE, or 1"),
            "repair": (False, "of a run: cut a damaged event log, remove left-over temporary files"),
        },
    )
    parser.add_argument("target", nargs="?", default="", help="recipe, .toml file or run directory")
    options, given = parse_with_settings(parser, words)
    if options.ranks < 0:
        raise UserError(f"--ranks: {options.ranks} is below 0")
    world = os.environ.get("WORLD_SIZE", "")
    ranks = options.ranks or (int(world) if world.isdigit() else 0) or 1
    directory = Path(options.target) if options.target and Path(options.target).is_dir() else None
    if options.repair and directory is None:
        raise UserError("--repair: goes with a run directory; name one")

    from rich.console import Console

    try:
        from megaclass.doctor import machine, recipe
        from megaclass.doctor import run as of_run
        from megaclass.doctor.findings import told
        from megaclass.report.console import printable
    except (ImportError, OSError) as error:  # OSError: of a shared library
        raise UserError(f"megaclass cannot be loaded: {error}; install it and PyTorch again") from None

    console, marks = Console(highlight=False, soft_wrap=True), list[str]()

    def show(title: str, found: Iterable["Finding"]) -> None:
        console.print(printable(title), style="bold", markup=False)
        for finding in found:
            marks.append(finding.mark)
            _print(console, finding)

    config = None
    try:
        config = _configured(options.target, directory, given)
    except UserError as error:
        if directory is None:  # nothing else makes sense; of a run its log and checkpoints still do
            show(f"Recipe {options.target}", [told("fail", "settings", error)])
            return 1
    output = config.run.output if config else options.target
    show("Machine", machine.findings(recipe.existing(Path(output or "."))))
    if directory:
        show(f"Run {directory}", of_run.findings(directory, options.repair))
    if config and options.target:
        found = recipe.findings(config, ranks, is_new=directory is None)
        show(f"Recipe {config.recipe}{f' on {ranks} ranks' if ranks > 1 else ''}", found)
    counts = {mark: marks.count(mark) for mark in _COLOURS}
    console.print("{ok} ok, {warn} to look at, {fail} failed".format(**counts), style="bold")
    return 1 if counts["fail"] else 0


def _configured(target: str, directory: Path | None, given: Given) -> Config:
    """The recipe, or the configuration of the run, which may have been moved; with the settings that are given."""
    if not target:
        return from_mapping(given)
    if directory is None:
        return from_mapping(given, load_recipe(target, complete=False))
    stored = load_recipe(str(directory / "config.toml"), complete=False, stored=True)
    return from_mapping(given, replace(stored, run=replace(stored.run, output=str(directory))))


def _print(console: "Console", finding: "Finding") -> None:
    """On a terminal with what to do below, in its colour; elsewhere one line, of any length."""
    from rich.table import Table
    from rich.text import Text

    from megaclass.report.console import printable

    found, advice, colour = printable(finding.found), printable(finding.advice), _COLOURS[finding.mark]
    if not console.is_terminal:
        line = f"{finding.mark:{_MARK}}  {printable(finding.what):{_WHAT}}  {found}"
        console.print(f"{line}; {advice}" if advice else line, markup=False)
        return
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=_MARK)
    row.add_column(width=_WHAT)
    row.add_column(overflow="fold")
    told = Text(found).append(f"\n{advice}" if advice else "", colour)
    row.add_row(Text(finding.mark, colour), Text(printable(finding.what)), told)
    console.print(row)
