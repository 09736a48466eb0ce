"""What must be alike on all ranks, and the line that tells of what is not.

Ranks with other settings, another source or another data set would train in silence, each on its own terms.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import megaclass
from megaclass.config import Config, options, values

# Of each machine its own; the kind of device is compared as what it comes to be.
_OF_A_MACHINE = ("run.device", "run.threads", "data.workers")
_MOST, _LONGEST = 8, 80  # differences that are told, letters of a value


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


def difference(told: Sequence[Mapping[str, str]]) -> str:
    """What the first rank that differs from rank 0 has otherwise, as a line; empty where none does."""
    others = [rank for rank, facts in enumerate(told) if facts != told[0]]
    if not others:
        return ""
    usual, rank = told[0], others[0]
    lines = [
        f"{name} is {_shown(usual, name)} on rank 0 and {_shown(told[rank], name)} on rank {rank}"
        for name in {**usual, **told[rank]}
        if usual.get(name) != told[rank].get(name)
    ]
    more = f"; and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
    too = f"; more ranks that differ: {len(others) - 1}" if others[1:] else ""
    return f"ranks differ: {'; '.join(lines[:_MOST])}{more}{too}: all ranks need the same"


def _shown(facts: Mapping[str, str], name: str) -> str:
    text = facts.get(name, "missing")
    text = text if text and text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
