"""What the verbs share: parsers with usages of one line, settings given by ``--section.key``, names of parts."""

import importlib
import itertools
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megaclass.config import SECTIONS, Config, documented, from_mapping, require_known
from megaclass.config import options as settings
from megaclass.errors import UserError, lookup

Given = dict[str, dict[str, Any]]
Parts = dict[str, str]  # what follows a verb, and what it does in a line


def run_part(verb: str, what: str, parts: Parts, words: list[str]) -> int | None:
    """Run the part of ``verb`` that the first word names: the function of that name in the module of that name.

    Returns its exit status, None being 0.
    """
    if words[:1] in (["-h"], ["--help"], ["help"]):
        width = max(map(len, parts))
        lines = [f"  megaclass {verb} {name:{width}}  {text}" for name, text in parts.items()]
        print(
            "\n".join([*lines, "", f"`megaclass {verb} {min(parts)} --help` says more, as for each of them."])
        )
        return None
    if not words:
        raise UserError(f"which {what}? known: {', '.join(parts)}")
    lookup(parts, words[0], what)
    module = importlib.import_module(f"megaclass.cli.{verb}.{words[0]}")
    part: Callable[[list[str]], int | None] = getattr(module, words[0])
    return part(words[1:])


def make_parser(usage: str, description: str) -> Any:
    """A parser whose usage is one line: the settings alone would fill a screen."""
    from jsonargparse import ArgumentParser

    words = itertools.takewhile(lambda word: word.islower() and word[0].isalpha(), usage.split())
    program = " ".join(words)
    return ArgumentParser(
        prog=program, usage=usage, description=description, exit_on_error=False, allow_abbrev=False
    )


def parse(parser: Any, words: list[str]) -> Any:
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        raise UserError(f"{_one_line(error)}; see `{parser.prog} --help`") from None


def configured(parser: Any, words: list[str], base: Callable[[Any, Given], Config]) -> tuple[Config, Any]:
    """Parse the verb's own options and every ``--section.key``, which is put into what ``base`` returns."""
    try:
        options, given = parse_with_settings(parser, words)
        return from_mapping(given, base(options, given)), options
    except UserError as error:
        error.agreed = True  # all ranks were given the same words
        raise


def parse_with_settings(parser: Any, words: list[str]) -> tuple[Any, Given]:
    """The verb's own options, and the settings given by ``--section.key`` as a nested mapping."""
    fields = settings()
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(f"{name}: {(section.__doc__ or '').splitlines()[0]}")
        for key, f in fields.items():
            if key.startswith(f"{name}."):
                group.add_argument(
                    f"--{key}", type=f.type, default=SUPPRESS, help=documented(f).replace("%", "%%")
                )
    for word in words:
        if word.startswith("--") and "." in (key := word[2:].partition("=")[0]):
            require_known(key)
    options = parse(parser, words)
    given: Given = {}
    for key in fields:
        if (value := options.get(key)) is not None:
            section_name, option_name = key.split(".")
            given.setdefault(section_name, {})[option_name] = value
    return options, given


def add_run_options(parser: Any, use: str) -> None:
    """``--run-dir`` and ``--checkpoint``: the run whose model is put to ``use`` (``scored``, say)."""
    parser.add_argument("--run-dir", type=str, default="", help=f"run directory whose model is {use}")
    parser.add_argument(
        "--checkpoint", type=str, default="best", help="of that run: best, latest or a step-NNNNNNNN"
    )


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def new_file(name: str, option: str = "--output") -> Path | None:
    """The path to write to, if any: asked before the work, so that none is lost."""
    if name and Path(name).exists():
        raise UserError(f"{option}: {name} exists; name another file")
    if not Path(name).parent.is_dir():
        raise UserError(f"{option}: {Path(name).parent} is not a directory; make it, or name another file")
    return Path(name) if name else None
