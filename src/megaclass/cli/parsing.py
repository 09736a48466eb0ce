"""What the verbs share: parsers with usages of one line, settings given by ``--section.key``."""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from megaclass.config import SECTIONS, Config, documented, from_mapping, from_text, require_known
from megaclass.config import options as settings
from megaclass.errors import UserError, near_match

Given = dict[str, dict[str, Any]]


class Parser(argparse.ArgumentParser):
    """argparse's, with what it refuses told as UserError, and the near match of a flag that there is not."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def make_parser(usage: str, description: str) -> Parser:
    """A parser whose usage is one line: the settings alone would fill a screen."""
    words = itertools.takewhile(lambda word: word.islower() and word[0].isalpha(), usage.split())
    return Parser(prog=" ".join(words), usage=usage, description=description, allow_abbrev=False)


def parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    options, unknown = parser.parse_known_args(words)
    for word in unknown:
        flag = word.partition("=")[0]
        near = near_match(flag, list(parser._option_string_actions)) if flag.startswith("-") else ""
        parser.error(f"unknown argument {word!r}{near}")
    return options


def configured(
    parser: Parser, words: list[str], base: Callable[[Any, Given], Config]
) -> tuple[Config, argparse.Namespace]:
    """Parse the verb's own options and every ``--section.key``, which is put into what ``base`` returns."""
    try:
        options, given = parse_with_settings(parser, words)
        return from_mapping(given, base(options, given)), options
    except UserError as error:
        error.agreed = True  # all ranks were given the same words
        raise


def parse_with_settings(parser: Parser, words: list[str]) -> tuple[argparse.Namespace, Given]:
    """The verb's own options, and the settings given by ``--section.key`` as a nested mapping.

    ``--help`` tells of the verb's own options, ``--help-all`` of every setting too.
    """
    in_full = "--help-all" in words
    parser.add_argument("--help-all", action="help", help="the same with every setting, --section.key VALUE")
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(f"{name}: {(section.__doc__ or '').splitlines()[0]}")
        for key, f in settings().items():
            if key.startswith(f"{name}."):
                told = documented(f).replace("%", "%%") if in_full else argparse.SUPPRESS
                group.add_argument(f"--{key}", dest=key, metavar="VALUE", help=told)
    for word in words:
        if word.startswith("--") and "." in (key := word[2:].partition("=")[0]):
            require_known(key)
    options = parse(parser, words)
    given: Given = {}
    for key in settings():
        text = vars(options).pop(key)
        if text is not None:
            section_name, option_name = key.split(".")
            given.setdefault(section_name, {})[option_name] = from_text(key, text)
    return options, given


def add_run_options(parser: Parser, use: str) -> None:
    """``--run-dir`` and ``--checkpoint``: the run whose model is put to ``use`` (``scored``, say)."""
    parser.add_argument("--run-dir", default="", help=f"run directory whose model is {use}")
    parser.add_argument("--checkpoint", default="best", help="of that run: best, latest or a step-NNNNNNNN")


def new_file(name: str, option: str = "--output") -> Path | None:
    """The path to write to, if any: asked before the work, so that none is lost."""
    if name and Path(name).exists():
        raise UserError(f"{option}: {name} exists; name another file")
    if not Path(name).parent.is_dir():
        raise UserError(f"{option}: {Path(name).parent} is not a directory; make it, or name another file")
    return Path(name) if name else None
