"""Who takes turns in a case of ``bench train``: ours, ours with other settings, and the loops of others."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from megaclass.bench.peers import LOOPS
from megaclass.bench.peers.arcface_torch import MALLOC
from megaclass.bench.runner import Entry
from megaclass.bench.train.cases import TrainCase, config_of, resolved
from megaclass.config import options, require_known
from megaclass.errors import UserError, lookup

_WORDS = {"true": True, "false": False}


def swept(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``section.key=a,b`` as key and values, in their order. UserError: no such setting, or no such value."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise UserError(f"--set: {text!r} is not section.key=VALUE,VALUE")
        require_known(key)
        if key in found:
            raise UserError(f"--set {key}: given twice; put all its values into one")
        found[key] = list(dict.fromkeys(_value(key, word.strip()) for word in values.split(",")))
    return found


def _value(key: str, word: str) -> Any:
    kind: Any = options()[key].type
    try:
        if kind is bool:
            return _WORDS[word.lower()]
        if kind in (int, float, str):
            return kind(word)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"--set {key}: {word!r} is not {wanted}") from None
    raise UserError(f"--set {key}: a list of numbers cannot be swept; measure it with --{key}, once for each")


def variants(case: TrainCase, values: Mapping[str, Sequence[Any]], one_at_a_time: bool) -> list[Entry]:
    """Ours in every combination of ``values``, or as the case is and then with one value changed at a time. Each says
    all settings that are swept. UserError: a value that does not go with the case."""
    if not values:
        return [Entry()]
    config = config_of(case)
    base = {key: getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key in values}
    if one_at_a_time:
        changed = [{key: value} for key in values for value in values[key] if value != base[key]]
        found = [base, *(base | change for change in changed)]
    else:
        found = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return [Entry(changes=_changes(case, settings)) for settings in found]


def _changes(case: TrainCase, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and what follows from them."""
    changed = resolved(replace(case, settings=case.settings | dict(settings)))
    before, after = asdict(case), asdict(changed)
    return {name: value for name, value in after.items() if value != before[name]}


def check_peers(peers: Sequence[str], path: str) -> dict[str, dict[str, Any]]:
    """The peers by name, with what their loops need to know. UserError: none of that name, or not its code."""
    found = {}
    for name in peers:
        lookup(LOOPS, name, "peer")
        if name == "arcface_torch" and not path:
            raise UserError(f"--peer {name} needs --peer-path: the directory with its code")
        found[name] = LOOPS[name].options(path)
    if path and "arcface_torch" not in found:
        raise UserError("--peer-path goes with --peer arcface_torch")
    return found


def peers_of(case: TrainCase, peers: Mapping[str, dict[str, Any]]) -> list[Entry]:
    """The loops of others on the case as it is. On a CPU they keep freed memory, as ours does."""
    on_cpu = case.device == "cpu"
    return [
        Entry(
            implementation=name,
            changes=LOOPS[name].parameters(case),
            extra={"malloc": "tuned"} if on_cpu else {},
            variables=MALLOC["tuned"] if on_cpu else {},
            options=given,
            missing=LOOPS[name].why_not(case, config_of(case)),
        )
        for name, given in peers.items()
    ]
