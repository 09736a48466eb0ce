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


def difference(told: Sequence[Mapping[str, Any]]) -> str:
    """What the first rank that differs from rank 0 has otherwise, as a line; empty where none does."""
    for rank, facts in enumerate(told):
        lines = [
            f"{name} is {_shown(told[0], name)} on rank 0 and {_shown(facts, name)} on rank {rank}"
            for name in {**told[0], **facts}
            if told[0].get(name) != facts.get(name)
        ]
        if lines:
            more = f"; and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
            others = [str(other) for other in range(rank + 1, len(told)) if told[other] != told[0]]
            too = f", and rank {', '.join(others[:_MOST])} differs too" if others else ""
            return f"ranks differ: {'; '.join(lines[:_MOST])}{more}{too}: all ranks need the same"
    return ""


def _shown(facts: Mapping[str, Any], name: str) -> str:
    text = str(facts.get(name, "missing"))
    text = text if text and text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
