"""The configuration as mappings and as TOML."""

import dataclasses
import json
from typing import Any

from megaclass.config.sections import SECTIONS, Config


def to_mapping(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def to_toml(config: Config, *, only_changed: bool = False, docs: bool = False) -> str:
    """The configuration as TOML: complete, or what differs from the defaults; optionally commented."""
    default = Config()
    lines = [f"{name} = {_literal(getattr(config, name))}" for name in ("recipe", "description")]
    for section_name, section in SECTIONS.items():
        ours, theirs = getattr(config, section_name), getattr(default, section_name)
        body = []
        for f in dataclasses.fields(section):
            value = getattr(ours, f.name)
            if not only_changed or value != getattr(theirs, f.name):
                comment = f"  # {documented(f)}" if docs else ""
                body.append(f"{f.name} = {_literal(value)}{comment}")
        if body:
            lines += ["", f"[{section_name}]", *body]
    return "\n".join(lines) + "\n"


def documented(f: dataclasses.Field) -> str:
    """One line about an option: what it means, and its choices or bounds where it has any."""
    choices = ("lowest, highest",) if f.metadata["interval"] else f.metadata["choices"]
    return f.metadata["doc"] + (f" ({' | '.join(choices)})" if choices else "")


def _literal(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)  # TOML reads Python's shortest form
    # TOML's basic strings escape as JSON's do, except that DEL must be escaped as well.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
