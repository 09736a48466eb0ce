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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaclass.data.dataset import read_text
from megaclass.errors import UserError

_FORMS = 'lines "CLASS NAME" or one name a line, or JSON {"CLASS": "NAME"} or {"0": ["CLASS", "NAME"]}'


def read_names(path: str | Path, classes: Sequence[str] | None, num_classes: int) -> list[str]:
    """What the file calls each class, in label order; ``classes`` are the names that the model has for them.

    UserError, naming the file, for one that cannot be read, leaves a class out, or names one twice.
    """
    path = Path(path)
    text = read_text(path, "--names").rstrip()
    if not text:
        raise UserError(f"--names: {path} is empty; give {_FORMS}")
    is_json = path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "["))
    by_class, by_label = _of_json(path, text) if is_json else _of_lines(path, text, set(classes or ()))
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


def _of_lines(path: Path, text: str, classes: set[str]) -> tuple[dict[str, str], list[str]]:
    """Names by class, and by label."""
    lines = [line.strip() for line in text.split("\n")]
    if "" in lines:
        raise UserError(
            f"--names: {path} line {lines.index('') + 1} is empty, so which class it names is unclear; remove it"
        )
    pairs = [line.replace("\t", " ", 1).partition(" ") for line in lines]
    rows = [(f"{path} line {i}", name, told.strip()) for i, (name, _, told) in enumerate(pairs, 1)]
    return _once([row for row in rows if row[1] in classes and row[2]]), lines


def _of_json(path: Path, text: str) -> tuple[dict[str, str], list[str]]:
    """Names by class, and by label."""
    try:
        stored = json.loads(text, object_pairs_hook=lambda pairs: _once([(path, *pair) for pair in pairs]))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"--names: {path} is not valid JSON ({error}); give {_FORMS}") from None
    if isinstance(stored, list):
        return {}, [_name(path, f"entry {i}", value) for i, value in enumerate(stored)]
    if not isinstance(stored, dict):
        raise UserError(f"--names: {path} holds {stored!r:.40}; give {_FORMS}")
    # A pair is a class and its name, under its label; all else a name under its class or its label.
    rows = [
        (key, value if isinstance(value, list) and len(value) == 2 else (key, value))
        for key, value in stored.items()
    ]
    found = [(key, _name(path, key, name), _name(path, key, told)) for key, (name, told) in rows]
    by_class = _once([(path, name, told) for _, name, told in found])
    by_number = {key: told for key, _, told in found}
    numbers = [str(i) for i in range(len(by_number))]
    return by_class, [by_number[i] for i in numbers] if by_number.keys() == set(numbers) else []


def _once(rows: Sequence[tuple[object, str, Any]]) -> dict[str, Any]:
    """Rows of (where, name, value) as a dictionary. UserError for a name that comes twice with different values."""
    found: dict[str, Any] = {}
    for where, name, value in rows:
        if found.setdefault(name, value) != value:
            raise UserError(
                f"--names: {where} names class {name!r} again, {found[name]!r} before; remove one"
            )
    return found


def _name(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"--names: {path}: {key!r} has {value!r:.40} for a name; give {_FORMS}")
    return value.strip()
