"""What a model is worth: embeddings of a set, verification and classification, for any model and any data."""

import importlib
from typing import Any

# Further ones, by what ``megaclass evaluate`` calls them.
PROTOCOLS = ("all-pairs", "identification", "ijb", "retrieval")


def protocol_of(kind: str) -> Any:
    """The module of one of ``PROTOCOLS``, see :mod:`megaclass.evaluation.protocol`."""
    return importlib.import_module(f"megaclass.evaluation.{kind.replace('-', '_')}")
