"""``megaclass doctor``: a machine, a recipe and a run looked at before they cost time."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from megaclass.cli.parsing import make_parser, parse_with_settings
from megaclass.config import from_mapping, load_recipe
from megaclass.errors import UserError, printable
from megaclass.results.rundir import RunDirectory

if TYPE_CHECKING:
    from megaclass.doctor.findings import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(words: list[str]) -> int:
    parser = make_parser(
        "megaclass doctor [RECIPE|RUN] [--ranks N] [--repair] [--section.key VALUE ...]",
        "Look at this machine, and at what a recipe asks of it, or at a run directory: a line for each thing, with "
        "what to do where it is not well. Exit status 0: nothing fails; 1: something does.",
        options={
            "ranks": (1, "processes that are to train together"),
            "repair": (
                False,
                "of a run: set a damaged event log aside, and keep its lines before the damage",
            ),
        },
    )
    parser.add_argument("target", nargs="?", default="", help="recipe, .toml file or run directory")
    options, given = parse_with_settings(parser, words)
    ranks, target = options.ranks, Path(options.target)
    if ranks < 1:
        raise UserError(f"--ranks: {ranks} is below 1")
    directory = target if options.target and RunDirectory(target).config.is_file() else None
    if options.repair and directory is None:
        raise UserError("--repair: goes with a run directory; name one")
    if given and directory:
        raise UserError(f"settings go with a recipe; name {directory / 'config.toml'}")
    recipe_given = bool(options.target) and directory is None
    config = from_mapping(given, load_recipe(options.target, complete=False) if recipe_given else None)

    try:
        from megaclass.doctor import machine, recipe, run
    except (ImportError, OSError) as error:  # OSError: of a shared library
        raise UserError(f"megaclass cannot be loaded: {error}; install it and PyTorch again") from None

    marks = _show("Machine", machine.findings(recipe.existing(directory or Path(config.run.output or "."))))
    if directory:
        marks += _show(f"Run {directory}", run.findings(directory, options.repair))
    elif recipe_given:
        title = f"Recipe {config.recipe}{f' on {ranks} ranks' if ranks > 1 else ''}"
        marks += _show(title, recipe.findings(config, ranks))
    print(", ".join(f"{marks.count(mark)} {mark}" for mark in _COLOURS))
    return 1 if "fail" in marks else 0


def _show(title: str, found: Iterable["Finding"]) -> list[str]:
    """Prints a line for each finding, of any length, as it comes. Returns their marks."""
    from rich.console import Console
    from rich.text import Text

    console, marks = Console(highlight=False, soft_wrap=True), []
    console.print(printable(title), style="bold", markup=False)
    for finding in found:
        line = f"  {finding.what:13}  {finding.found}{'; ' * bool(finding.advice)}{finding.advice}"
        console.print(Text(f"{finding.mark:4}", _COLOURS[finding.mark]).append(printable(line), "default"))
        marks.append(finding.mark)
    return marks
