"""From nested mappings to a checked configuration: strict, and with the near match of what is not known."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from megaclass.config.checks import absent, check, differences
from megaclass.config.sections import DEFAULTS, SECTIONS, Config, Interval, Numbers, conditions, options
from megaclass.errors import UserError, near_match

# Settings that earlier versions wrote into every config.toml: a recipe that leaves one as it was is still read.
REMOVED = {
    "head.placement": ("device", "choose a smaller head.storage for classes that do not fit"),
    "speed.gradient_reduce": ("flat", "speed.gradient_compression and speed.bucket_mb are left"),
}


def from_mapping(
    tree: Mapping[str, Any], base: Config | None = None, *, complete: bool = True, stored: bool = False
) -> Config:
    """``base`` (the defaults) with the nested mapping's values put in, checked.

    A value in ``tree`` for a key that does not exist beside the others (``head.m2`` of a linear head) is a UserError;
    one of ``base`` is dropped: the choice that brought it has changed, or another stands in its place
    (``schedule.epochs`` given in place of its ``schedule.samples``). complete: False where more is to come, so
    that values are not held against one another yet. stored: what a run wrote, earlier versions with such keys too.
    """
    base = base or Config()
    given: dict[str, Any] = {}
    texts: dict[str, Any] = {}
    for name, value in tree.items():
        if name in SECTIONS:
            if not isinstance(value, Mapping):
                raise UserError(f"{name} is a section: write [{name}] and its keys below")
            given |= _typed(name, value)
        elif name in ("recipe", "description"):
            if not isinstance(value, str):
                raise UserError(f"{name}: {value!r} is not a text")
            texts[name] = value
        else:
            known = [*SECTIONS, "recipe", "description"]
            raise UserError(f"unknown section {name!r}{near_match(name, known)}")
    replaced = {other: DEFAULTS[other] for key, value in given.items() if value for other in _instead_of(key)}
    config = _put(dataclasses.replace(base, **texts), replaced | given)
    config = _drop_absent(config, {} if stored else given)
    check(config, together=complete)
    return config


def require_known(key: str) -> None:
    """UserError, with the near match, unless ``key`` is a ``section.key`` that exists."""
    known, (section, _, name) = list(options()), key.rpartition(".")
    if key not in known:
        # The likelier ones first: names that begin like this one, or hold it, and the same name elsewhere.
        groups = (
            [k for k in known if k.startswith(key)],
            [k for k in known if k.startswith(f"{section}.") and name in k],
            [k for k in known if k.endswith(f".{name}")],
            known,
        )
        near = next(filter(None, (near_match(key, group) for group in groups)), "")
        raise UserError(f"unknown key {key!r}{near}; `megaclass train --help-all` lists them")


def from_text(key: str, text: str) -> Any:
    """The value of a setting as a command line has it. UserError names the key and the value."""
    kind: Any = options()[key].type
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in (Interval, Numbers):
        return [_number(key, word, float) for word in text.strip("[] ").split(",") if word.strip()]
    return text if kind is str else _number(key, text, kind)


def _number(key: str, text: str, kind: Any) -> Any:
    with contextlib.suppress(ValueError):
        return kind(text)
    return _convert(key, text, kind)


def _put(config: Config, values: Mapping[str, Any]) -> Config:
    """``config`` with the values of these ``section.key``."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    changed = {name: dataclasses.replace(getattr(config, name), **found) for name, found in sections.items()}
    return dataclasses.replace(config, **changed)


def _instead_of(key: str) -> list[str]:
    """The settings that this one is given in place of: it exists where they are 0."""
    return [other for other, wanted in conditions(key).items() if wanted == (0,)]


def _drop_absent(config: Config, given: Mapping[str, Any]) -> Config:
    """``config`` with the defaults where a key does not exist. UserError for one that is ``given`` another value."""
    while dropped := differences(Config(), config).keys() & (why := absent(config)).keys():
        for key in options():
            if key in dropped and key in given:
                raise UserError(f"{key}: {why[key]}")
        config = _put(config, {key: DEFAULTS[key] for key in dropped})
    return config


def _typed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for name, value in values.items():
        if (key := f"{section}.{name}") in REMOVED:
            harmless, advice = REMOVED[key]
            if value != harmless:
                raise UserError(f"{key}: {value!r} is no longer there; {advice}")
            continue
        if key == "run.tensorboard":  # of earlier versions
            key, value = "run.track", {True: "auto", False: "none"}.get(value, value)
        require_known(key)
        field = options()[key]
        result[key] = _convert(key, value, field.type)
        if field.metadata["path"] and "~" in result[key]:
            result[key] = os.pathsep.join(map(os.path.expanduser, result[key].split(os.pathsep)))
    return result


def _convert(key: str, value: Any, kind: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    too_long = isinstance(value, int) and bool(abs(value) >> 1023)  # for a float
    if kind is float and number and not too_long:
        return float(value)
    if kind in (Interval, Numbers) and isinstance(value, list | tuple):
        return tuple(_convert(key, v, float) for v in value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    raise UserError(f"{key}: {value!r} is not {names.get(kind, 'a list of numbers')}")
