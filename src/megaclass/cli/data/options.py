"""The options of the verbs about data sets: each a name, its default and its help."""

from collections.abc import Mapping
from typing import Any

from megaclass.cli.parsing import make_parser, parse

Options = Mapping[str, tuple[Any, str]]
SET = "record set or image folder; several with ':' between them"
OUTPUT = "directory for the record set; must not hold one"


def read_options(
    words: list[str], usage: str, text: str, positional: Mapping[str, str], groups: Mapping[str, Options]
) -> Any:
    """The words parsed. ``positional``: name -> help, ``name...`` taking one or more; ``groups``: title -> options.

    An option whose default is False is a flag, one whose default is a list takes one of these, by default the first,
    one whose default is a type is None unless it is given. Raises UserError.
    """
    parser = make_parser(usage, text)
    for name, told in positional.items():
        more: dict[str, Any] = {"nargs": "+"} if name.endswith("...") else {}
        parser.add_argument(name.removesuffix("..."), type=str, help=told, **more)
    for title, options in groups.items():
        group = parser.add_argument_group(title) if title else parser
        for name, (default, told) in options.items():
            if default is False:
                kind: dict[str, Any] = {"action": "store_true"}
            elif isinstance(default, list):
                kind = {"choices": default, "default": default[0]}
            elif isinstance(default, type):
                kind = {"type": default, "default": None}
            else:
                kind = {"type": type(default), "default": default}
            group.add_argument(f"--{name}", help=told, **kind)
    return parse(parser, words)
