"""The configuration as TOML, and beside another."""

import dataclasses
import json
from typing import Any

from megaclass.config.checks import absent, value_of
from megaclass.config.sections import Config, Interval, options


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Every ``section.key`` that has another value, with both."""
    values = {key: (value_of(before, key), value_of(after, key)) for key in options()}
    return {key: (old, new) for key, (old, new) in values.items() if old != new}


def to_toml(config: Config, *, only_changed: bool = False, docs: bool = False) -> str:
    """The configuration as TOML: every key that exists in it, or what differs from the defaults; optionally
    commented."""
    lines = [f"{name} = {_literal(getattr(config, name))}" for name in ("recipe", "description")]
    absent_keys, changed, last = absent(config), differences(Config(), config), ""
    for key, f in options().items():
        section, name = key.split(".")
        if key in (absent_keys if not only_changed else options().keys() - changed):
            continue
        lines += ["", f"[{section}]"] * (section != last)
        lines.append(f"{name} = {_literal(value_of(config, key))}{f'  # {documented(f)}' if docs else ''}")
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
    # TOML's basic strings escape as JSON's do, except that DEL must be escaped as well.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
