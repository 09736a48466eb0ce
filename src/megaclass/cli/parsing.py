"""What the verbs share: parsers with usages of one line, settings given by ``--section.key``."""

import argparse
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from megaclass.config import SECTIONS, Config, documented, from_mapping, from_text, load_recipe, require_known
from megaclass.config import options as settings
from megaclass.errors import UserError, lookup, near_match

if TYPE_CHECKING:
    from megaclass.inference.model import Model

RUN_OPTIONS = {
    "run-dir": ("", "run directory whose model is asked, or one checkpoint"),
    "checkpoint": ("best", "of that run: best, latest or a step-NNNNNNNN"),
    "recipe": ("", "instead of a run: a network, with the weights in --model.weights"),
}
MODEL_OPTIONS = RUN_OPTIONS | {
    "align": (
        "",
        "face detector (YuNet, ONNX): the model sees the largest face of each photograph, set upright",
    ),
}
Given = dict[str, dict[str, Any]]
Options = Mapping[str, tuple[Any, str]]


class Help(argparse.HelpFormatter):
    """argparse's, with the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, "", argparse.SUPPRESS, []) or action.default is False
        return action.help if silent or "default" in (action.help or "") else f"{action.help} (default %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse's, with what it refuses told as UserError, and the near match of a flag that there is not."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def make_parser(
    usage: str, description: str, positional: Mapping[str, str] | None = None, options: Options | None = None
) -> Parser:
    """A parser whose usage is one line: the settings alone would fill a screen.

    positional: name -> help, ``name...`` taking some; options: name -> default, help. An option whose default is False
    is a flag, one whose default is a list takes one of these, by default the first, one whose default is callable
    is parsed by it, and None unless it is given.
    """
    words = itertools.takewhile(lambda word: word.islower() and word[0].isalpha(), usage.split())
    parser = Parser(" ".join(words), usage, description, allow_abbrev=False, formatter_class=Help)
    for name, told in (positional or {}).items():
        more: dict[str, Any] = {"nargs": "+"} if name.endswith("...") else {}
        parser.add_argument(name.removesuffix("..."), help=told, **more)
    for name, (default, told) in (options or {}).items():
        if default is False:
            kind: dict[str, Any] = {"action": "store_true"}
        elif isinstance(default, list):
            kind = {"choices": default, "default": default[0]}
        elif callable(default):
            kind = {"type": default}
        else:
            kind = {"type": type(default), "default": default}
        parser.add_argument(f"--{name}", help=told, **kind)
    return parser


def verb_asked(group: str, helps: Mapping[str, str], words: list[str], what: str = "") -> str:
    """The first word, a verb of a group, or "" where help was asked for, which is printed. ``what`` they are called."""
    if words[:1] in (["-h"], ["--help"], ["help"]):
        width = max(map(len, helps))
        print("\n".join(f"  megaclass {group} {name:{width}}  {text}" for name, text in helps.items()))
        print(f"\n`megaclass {group} {next(iter(helps))} --help` says more, as for each of them.")
        return ""
    what = what or f"{group} command"
    if not words:
        raise UserError(f"which {what}? known: {', '.join(helps)}")
    lookup(helps, words[0], what)
    return words[0]


def parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    options, unknown = parser.parse_known_args(words)
    for word in unknown:
        flag = word.partition("=")[0]
        known = list(parser._option_string_actions)
        settings_so_named = [option for option in known if option.endswith(f".{flag.lstrip('-')}")]
        near = near_match(flag, settings_so_named or known) if flag.startswith("-") else ""
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
        if os.environ.get("WORLD_SIZE", "1") != "1":
            from megaclass.parallel.rendezvous import decline

            decline(error)
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


def model_asked(parser: argparse.ArgumentParser, options: argparse.Namespace, given: Given) -> "Model":
    """The model that ``MODEL_OPTIONS`` name, with the settings given, for a verb of one process."""
    require_one_process(parser)
    config = from_mapping(given, settings_asked(options, given, "run_dir", "recipe"))
    return open_asked(options, given, config).aligning(options.align)


def require_one_process(parser: argparse.ArgumentParser) -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"{parser.prog} runs in one process; start it without torchrun")


def settings_asked(options: argparse.Namespace, given: Given, *sources: str) -> Config:
    """Those of the run or recipe that is asked. UserError unless exactly one of these options names a model."""
    if sum(bool(getattr(options, name)) for name in sources) != 1:
        flags = [f"--{name.replace('_', '-')}" for name in sources]
        raise UserError(f"name the model by one of {', '.join(flags[:-1])} and {flags[-1]}")
    if options.checkpoint != "best" and not options.run_dir:
        raise UserError("--checkpoint goes with --run-dir")
    given.setdefault("evaluate", {})["task"] = "none"  # the verb says what is done
    if options.recipe:
        return load_recipe(options.recipe, complete=False)
    return stored_config(options.run_dir) if options.run_dir else Config()


def open_asked(options: argparse.Namespace, given: Given, config: Config) -> "Model":
    """The model; ``config``: what :func:`settings_asked` gives, with ``given`` put in."""
    from megaclass.inference.load import of_recipe, open_model

    if options.recipe:
        return of_recipe(config, getattr(options, "names", ""))
    return open_model(options.run_dir, options.checkpoint, given)


def stored_config(run_dir: str) -> Config:
    """The configuration of a run or of the run of a checkpoint; the defaults for a model of another kind.

    UserError, naming ``--run-dir``, where there is nothing.
    """
    path = Path(run_dir)
    run = path.resolve().parent.parent if (path / "manifest.json").exists() else path
    if (run / "config.toml").is_file():
        return load_recipe(str(run / "config.toml"), stored=True)
    if path.exists() or "://" in run_dir:
        return Config()
    raise UserError(
        f"--run-dir: {run_dir} is no run, it holds no config.toml; name the directory of one, such as runs/mine-001"
    )


def new_file(name: str, option: str = "--output", suffixes: Sequence[str] = ()) -> Path:
    """The path to write to: asked before the work, so that none is lost."""
    if not name:
        raise UserError(f"{option}: no name is given; name a new file")
    if Path(name).exists():
        raise UserError(f"{option}: {name} exists; name another file")
    if not Path(name).parent.is_dir():
        raise UserError(f"{option}: {Path(name).parent} is not a directory; make it, or name another file")
    if suffixes and Path(name).suffix.lower() not in suffixes:
        raise UserError(f"{option}: {name} ends with none of {', '.join(suffixes)}; name such a file")
    return Path(name)


def new_file_if_any(name: str, option: str = "--output", suffixes: Sequence[str] = ()) -> Path | None:
    return new_file(name, option, suffixes) if name else None
