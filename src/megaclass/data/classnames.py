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
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaclass.data.dataset import read_text
from megaclass.errors import UserError

_WORDNET = re.compile(r"n\d{8}\b")
_FORMS = 'lines "CLASS NAME" or one name a line, or JSON {"CLASS": "NAME"} or {"0": ["CLASS", "NAME"]}'


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"it has the key {twice!r} more than once")
    return found


def read_classes(path: str | Path, num_classes: int) -> list[str]:
    """The classes of a model that brings no names, from the file, in label order, as directories of images are called:
    the first of a pair, the WordNet number that begins a line, else the name. UserError as of :func:`read_names`."""
    names = read_names(path, None, num_classes, first=True)
    return [found[0] if (found := _WORDNET.match(name)) else name for name in names]


def read_names(path: str | Path, classes: Sequence[str] | None, num_classes: int, first: bool = False) -> list[str]:
    """What the file calls each class, in label order; ``classes`` are the names that the model has for them.

    first: of pairs the class, not the name. UserError, naming the file, for one that cannot be read or leaves a class
    out.
    """
    text = read_text(Path(path), "--names").strip()
    known = set(classes or ())
    stored: Any
    if text.startswith(("{", "[")):
        try:
            stored = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--names: {path} is not valid JSON ({error}); give {_FORMS}") from None
    else:
        lines = [line.strip() for line in text.splitlines()]
        words = [line.split(None, 1) for line in lines]
        stored = {pair[0]: pair[1] for pair in words if len(pair) == 2 and pair[0] in known} or lines
    if isinstance(stored, dict):
        # A pair is a class and its name, under its label; all else a name under its class or its label.
        rows = [
            (key, pair[0], pair[not first]) if isinstance(pair, list) and len(pair) == 2 else (key, key, pair)
            for key, pair in stored.items()
        ]
        by_class = {str(name): told for _, name, told in rows}
        by_label = {label: told for label, _, told in rows}
        if known.isdisjoint(by_class):
            found: list[Any] = [by_label.get(str(label)) for label in range(len(by_label))]
        else:
            found = [by_class.get(name) for name in classes or ()]
    else:
        found = stored
    if len(found) != num_classes:
        example = f" (the first is {classes[0]!r})" if classes else ""
        raise UserError(
            f"--names: {path} holds {len(found):,} names, none of them by class, and the model has "
            f"{num_classes:,} classes{example}; give {_FORMS}"
        )
    missing = [label for label, name in enumerate(found) if not isinstance(name, str) or not name.strip()]
    if missing:
        raise UserError(
            f"--names: {path} has no name for {len(missing):,} of {num_classes:,} classes, the first of them "
            f"{classes[missing[0]] if classes else missing[0]!r}; add what is missing"
        )
    return [name.strip() for name in found]
