"""From nested mappings to a checked configuration: strict, and with the near match of what is not known."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from megaclass.config.checks import check
from megaclass.config.sections import SECTIONS, Config, options
from megaclass.errors import UserError, near_match

# Settings that earlier versions wrote into every config.toml: a recipe that leaves one as it was is still read.
REMOVED = {
    "head.placement": ("device", "choose a smaller head.storage for classes that do not fit"),
    "speed.gradient_reduce": ("flat", "speed.gradient_compression and speed.bucket_mb are left"),
}


def from_mapping(tree: Mapping[str, Any], base: Config | None = None, *, complete: bool = True) -> Config:
    """``base`` (the defaults) with the nested mapping's values put in, checked. Not ``complete``: more is to come, so
    values are not held against one another yet."""
    base = base or Config()
    top: dict[str, Any] = {}
    for name, value in tree.items():
        if name in SECTIONS:
            if not isinstance(value, Mapping):
                raise UserError(f"{name} is a section: write [{name}] and its keys below")
            top[name] = dataclasses.replace(getattr(base, name), **_typed(name, value))
        elif name in ("recipe", "description"):
            if not isinstance(value, str):
                raise UserError(f"{name}: {value!r} is not a text")
            top[name] = value
        else:
            known = [*SECTIONS, "recipe", "description"]
            raise UserError(f"unknown section {name!r}{near_match(name, known)}")
    config = dataclasses.replace(base, **top)
    check(config, together=complete)
    return config


def require_known(key: str) -> None:
    """UserError, with the near match, unless ``key`` is a ``section.key`` that exists."""
    known = list(options())
    if key not in known:
        section, _, name = key.partition(".")
        # The likelier ones first: names that begin like this one, the same name elsewhere, those of the section.
        near = near_match(key, [k for k in known if k.startswith(key)])
        near = (
            near
            or near_match(key, [k for k in known if k.endswith(f".{name}")])
            or near_match(key, [k for k in known if k.startswith(f"{section}.")])
            or near_match(key, known)
        )
        raise UserError(f"unknown key {key!r}{near}; `megaclass show RECIPE --all` lists them")


def _typed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(SECTIONS[section])}
    result = {}
    for name, value in values.items():
        if (key := f"{section}.{name}") in REMOVED:
            harmless, advice = REMOVED[key]
            if value != harmless:
                raise UserError(f"{key}: {value!r} is no longer there; {advice}")
            continue
        require_known(key)
        result[name] = _convert(f"{section}.{name}", value, fields[name].type)
    return result


def _convert(key: str, value: Any, kind: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        kind is float and number and not (isinstance(value, int) and abs(value) >> 1023)
    ):  # those are no floats
        return float(value)
    if kind == list[float] and isinstance(value, list):
        return [_convert(key, v, float) for v in value]
    if kind in (int, bool, str) and type(value) is kind:
        return value
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}.get(
        kind, "a list of numbers"
    )
    raise UserError(f"{key}: {value!r} is not {wanted}")
