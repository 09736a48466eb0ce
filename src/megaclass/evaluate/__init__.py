"""What a model is worth: embeddings of a set, verification and classification, for any model and any data."""

import importlib
from typing import Any

# Further protocols: what ``megaclass evaluate`` calls one -> its module here, see :mod:`megaclass.evaluate.protocol`.
PROTOCOLS = {
    "all-pairs": "all_pairs",
    "identification": "identification",
    "ijb": "ijb",
    "retrieval": "retrieval",
}


def protocol_of(kind: str) -> Any:
    """The module, see :mod:`megaclass.evaluate.protocol`."""
    return importlib.import_module(f"megaclass.evaluate.{PROTOCOLS[kind]}")
