"""What must be alike on all ranks, and the line that tells of what is not.

Ranks with other settings, another source or another data set would train in silence, each on its own terms.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import megaclass
from megaclass.config import Config, options, values

# Of each machine its own; the kind of device is compared as what it comes to be.
_OF_A_MACHINE = ("run.device", "run.threads", "data.workers")
_MOST_DIFFERENCES, _MOST_VALUES, _MOST_RANKS, _LONGEST = 8, 3, 4, 80


def facts_of_config(config: Config) -> dict[str, str]:
    """Every setting that changes what a rank computes or when it waits for the others.

    A path may be another on each machine: whether there is one is compared here, what it holds elsewhere.
    """
    facts = {}
    for key, value in values(config).items():
        if options()[key].metadata["path"]:
            facts[key] = "given" if value else "not given"
        elif key not in _OF_A_MACHINE:
            facts[key] = str(value)
    return facts


def facts_of_program(device: torch.device) -> dict[str, str]:
    """Versions, the package's source, and the kind of device."""
    return {
        "run.device": device.type,
        "megaclass": megaclass.__version__,
        "megaclass's source": _source_digest(),
        "torch": torch.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def _source_digest() -> str:
    package, digest = Path(megaclass.__file__).parent, hashlib.blake2b(digest_size=6)
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()


def difference(told: Sequence[Mapping[str, Any]]) -> str:
    """The line about what differs between the facts of the ranks, in rank order; empty where nothing does."""
    names = dict.fromkeys(name for facts in told for name in facts)
    lines = []
    for name in names:
        ranks: dict[str, list[int]] = {}
        for rank, facts in enumerate(told):
            ranks.setdefault(str(facts.get(name, "missing")), []).append(rank)
        if len(ranks) > 1:
            parts = [f"{_shown(value)} on {_ranks(having)}" for value, having in ranks.items()]
            lines.append(f"{name} is {_some(parts, _MOST_VALUES, ' and ')}")
    if not lines:
        return ""
    return f"ranks differ: {_some(lines, _MOST_DIFFERENCES, '; ')}: all ranks need the same"


def _shown(text: str) -> str:
    if not text or not text.isprintable():
        text = repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {_some([*map(str, ranks)], _MOST_RANKS, ', ')}"


def _some(parts: list[str], most: int, between: str) -> str:
    """The first of them; one more is not worth leaving out."""
    if len(parts) <= most + 1:
        return between.join(parts)
    return f"{between.join(parts[:most])} and {len(parts) - most} more"
