"""Nested state <-> flat named tensors and a JSON skeleton, without loss.

JSON has neither tuples, integer keys, infinities nor tensors, and optimizer state has all four. Those are
written as one-key objects whose key starts with ``$``; everything else is plain JSON::

    {"state": {"$items": [[0, {"momentum_buffer": {"$tensor": "optimizer/state/0/momentum_buffer"}}]]},
     "betas": {"$tuple": [0.9, 0.999]}, "best": {"$float": "-inf"}}
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def flatten(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split ``state`` into a JSON skeleton and its tensors, named by their path (``backbone/bn1.weight``).

    A tensor that occurs twice is stored twice. Raises TypeError, naming the path, for anything but dicts,
    lists, tuples, strided tensors, str, int, float, bool and None.
    """
    tensors: dict[str, Tensor] = {}

    def encode(node: Any, path: tuple[str, ...]) -> Any:
        if node is None or isinstance(node, (bool, int, str)):
            return node
        if isinstance(node, float):
            return float(node) if math.isfinite(node) else {"$float": str(float(node))}
        if isinstance(node, Tensor) and node.layout == torch.strided and not node.is_meta:
            # safetensors wants valid UTF-8 and keeps one name for itself; {"a/b": x, "a": {"b": y}} and {1: x, "1": y}
            # are legal. The skeleton holds the name that was chosen, so any unused one does.
            name = "/".join(path).encode("utf-8", "backslashreplace").decode() or "value"
            while name in tensors or name == "__metadata__":
                name += "~"
            tensors[name] = node
            return {"$tensor": name}
        if isinstance(node, Mapping):
            items = [[encode(key, path), encode(value, (*path, str(key)))] for key, value in node.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return dict(items)
            return {"$items": items}
        if isinstance(node, (list, tuple)):
            values = [encode(value, (*path, str(index))) for index, value in enumerate(node)]
            return values if isinstance(node, list) else {"$tuple": values}
        raise TypeError(f"checkpoint: cannot store {node!r:.80} at {'/'.join(path)!r}")

    return encode(state, ()), tensors


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo :func:`flatten`. Raises ValueError or TypeError unless the skeleton is sound and uses each tensor once."""
    unused = dict(tensors)

    def decode(node: Any) -> Any:
        match node:
            case list():
                return [decode(value) for value in node]
            case dict() if not any(key.startswith("$") for key in node):
                return {key: decode(value) for key, value in node.items()}
            case {"$tensor": str(name), **more} if name in unused and not more:
                return unused.pop(name)
            case {"$float": ("nan" | "inf" | "-inf") as text, **more} if not more:
                return float(text)
            case {"$tuple": list(values), **more} if not more:
                return tuple(decode(value) for value in values)
            case {"$items": list(pairs), **more} if not more:
                return {decode(key): decode(value) for key, value in pairs}
            case dict():
                raise ValueError(f"the state holds {str(node)!r:.80}, which is unknown, or a tensor not in the file")
        return node

    state = decode(skeleton)
    if unused:
        raise ValueError(f"tensor {next(iter(unused))!r:.80} is in the file, but not named in the state")
    return state
