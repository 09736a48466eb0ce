"""Readable names of classes, from the files that people have them in.

| file | a line, or the whole |
|---|---|
| text, by class | ``n01440764 tench, Tinca tinca``: the name of a class, then what to call it |
| text, by label | ``tench, Tinca tinca``: one name a line, in label order |
| JSON, by class | ``{"n01440764": "tench"}`` |
| JSON, by label | ``{"0": "tench"}``, ``["tench"]``, or ``{"0": ["n01440764", "tench"]}``, as Keras has it |

A file by class may name more classes than the model has, one by label must have as many.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megaclass.errors import UserError

_FORMS = 'lines "CLASS NAME" or one name a line, or JSON {"CLASS": "NAME"} or {"0": ["CLASS", "NAME"]}'


def read_names(path: str | Path, classes: Sequence[str] | None, num_classes: int) -> list[str]:
    """What the file calls each class, in label order; ``classes`` are the names that the model has for them.

    UserError, naming file and line, for a file that cannot be read, leaves a class out, or names one twice.
    """
    path = Path(path)
    text = _read(path)
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
        by_class, by_label = _of_json(path, text)
    else:
        by_class, by_label = _of_lines(path, text, set(classes or ()))
    if classes and any(name in by_class for name in classes):
        missing = [name for name in classes if name not in by_class]
        if missing:
            raise UserError(
                f"--names: {path} has no name for {len(missing):,} of {num_classes:,} classes, the first of them "
                f"{missing[0]!r}; add what is missing"
            )
        return [by_class[name] for name in classes]
    if not by_label:
        known = f"; the model's first class is {classes[0]!r}" if classes else ", which has no class names"
        raise UserError(f"--names: {path} names no class of the model{known}; give {_FORMS}")
    if len(by_label) != num_classes:
        raise UserError(
            f"--names: {path} holds {len(by_label):,} names, none of them by class, and the model has "
            f"{num_classes:,} classes; give {_FORMS}"
        )
    return by_label


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--names: {path} cannot be read: {error.strerror}; name another file") from None
    except UnicodeDecodeError:
        raise UserError(f"--names: {path} is not a text file in UTF-8; give {_FORMS}") from None
    if not text.strip():
        raise UserError(f"--names: {path} is empty; give {_FORMS}")
    return text


def _of_lines(path: Path, text: str, classes: set[str]) -> tuple[dict[str, str], list[str]]:
    by_class: dict[str, str] = {}
    lines = text.rstrip().split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(
                f"--names: {path} line {number} is empty, so which class it names is unclear; remove it"
            )
        name, _, readable = line.strip().replace("\t", " ", 1).partition(" ")
        if name in classes and readable.strip():
            _add(by_class, name, readable.strip(), f"{path} line {number}")
    return by_class, [line.strip() for line in lines]


def _of_json(path: Path, text: str) -> tuple[dict[str, str], list[str]]:
    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            _add(found, key, value, str(path))
        return found

    try:
        stored = json.loads(text, object_pairs_hook=whole)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"--names: {path} is not valid JSON ({error}); give {_FORMS}") from None
    if isinstance(stored, list):
        return {}, [_name(path, f"entry {i}", value) for i, value in enumerate(stored)]
    if not isinstance(stored, Mapping):
        raise UserError(f"--names: {path} holds {stored!r:.40}; give {_FORMS}")
    by_class: dict[str, str] = {}
    by_number: dict[str, str] = {}
    for key, value in stored.items():
        if isinstance(value, list) and len(value) == 2:
            name = _name(path, key, value[1])
            _add(by_class, _name(path, key, value[0]), name, str(path))
        else:
            name = by_class[key] = _name(path, key, value)
        by_number[key] = name
    numbers = [str(i) for i in range(len(by_number))]
    return by_class, [by_number[i] for i in numbers] if by_number.keys() == set(numbers) else []


def _add(found: dict[str, Any], name: str, value: Any, where: str) -> None:
    if found.setdefault(name, value) != value:
        raise UserError(f"--names: {where} names class {name!r} again, {found[name]!r} before; remove one")


def _name(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"--names: {path}: {key!r} has {value!r:.40} for a name; give {_FORMS}")
    return value.strip()
