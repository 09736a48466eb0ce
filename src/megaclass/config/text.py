"""The configuration as TOML."""

import dataclasses
import json
from typing import Any

from megaclass.config.checks import absent, differences
from megaclass.config.sections import Config, Interval, options, values


def to_toml(config: Config, *, only_changed: bool = False, docs: bool = False) -> str:
    """The configuration as TOML: every key that exists in it, or what differs from the defaults; optionally
    commented."""
    lines = [f"{name} = {_literal(getattr(config, name))}" for name in ("recipe", "description")]
    kept = differences(Config(), config) if only_changed else values(config).keys() - absent(config)
    last = ""
    for key, value in values(config).items():
        if key in kept:
            section, name = key.split(".")
            lines += ["", f"[{section}]"] * (section != last)
            lines.append(f"{name} = {_literal(value)}{f'  # {documented(options()[key])}' if docs else ''}")
            last = section
    return "\n".join(lines) + "\n"


def documented(f: dataclasses.Field) -> str:
    """One line about an option: what it means, and its choices or bounds where it has any."""
    choices = ("lowest, highest",) if f.type == Interval else map(str, f.metadata["choices"])
    named = " | ".join(choices)
    return f.metadata["doc"] + (f" ({named})" if named else "")


def _literal(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)  # TOML reads Python's shortest form
    # TOML's basic strings escape as JSON's do. What a terminal obeys is escaped too; a byte of a path that is no
    # UTF-8 has no escape there.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(
        letter if letter.isprintable() or "\udc80" <= letter <= "\udcff" else f"\\U{ord(letter):08x}" for letter in text
    )
