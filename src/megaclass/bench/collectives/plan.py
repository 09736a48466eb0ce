"""``megaclass bench collectives``: from the words of a user to cases."""

from typing import Any

import torch

from megaclass.bench.arguments import check_timeout, counts, device_type, names, on_cores
from megaclass.bench.collectives import cases
from megaclass.bench.collectives.cases import CollectiveCase
from megaclass.bench.sweep import Planned
from megaclass.errors import UserError

# 4K to 64M in steps of four; GPUs, which are a hundred times as fast, to 1G.
_SIZES = {"cpu": [4**k for k in range(6, 14)], "cuda": [4**k for k in range(6, 16)]}
_SUFFIXES = {"K": 2**10, "M": 2**20, "G": 2**30}
_START_S, _BYTES_PER_SECOND = 4.0, {"cpu": 5e8, "cuda": 5e10}  # for the time left alone


def planned(options: Any) -> list[Planned]:
    """Every case that the options ask for. UserError: options that make no sense."""
    device = device_type(options.device)
    check_timeout(options.timeout)
    gpus = torch.cuda.device_count()
    found = cases.sweep(
        {
            "world_size": counts("world-size", options.world_size)
            if options.world_size
            else [_all_ranks(device, gpus)],
            "op": names(options.op),
            "size_bytes": sizes("size", options.size) if options.size else _SIZES[device],
        },
        dtype=options.dtype,
        device=device,
        steps=options.steps,
        warmup=options.warmup,
        seed=options.seed,
    )
    return [
        Planned(case=case, skip=case.why_skipped(gpus), weight=_weight(case))
        for case in on_cores(found, options.threads)
    ]


def sizes(flag: str, text: str) -> list[int]:
    """``4K,1.5M,1000`` as bytes; K, M and G are powers of 1024."""
    return [_size(flag, word.strip()) for word in text.split(",")]


def _size(flag: str, word: str) -> int:
    factor = _SUFFIXES.get(word[-1:].upper(), 1)
    try:
        size = float(word[:-1] if factor > 1 else word) * factor
    except ValueError:
        size = 0.5
    if not size.is_integer():  # neither is what is not finite
        raise UserError(f"--{flag}: {word!r} is not a number of bytes such as 1000, 4K, 64M or 1G")
    return int(size)


def _all_ranks(device: str, gpus: int) -> int:
    """A rank for each GPU; with a single one the cases say that they need two."""
    return max(2, gpus) if device == "cuda" else 2


def _weight(case: CollectiveCase) -> float:
    """About how many seconds a case takes."""
    turns_s = (case.steps + case.warmup) * max(0.02, case.size_bytes / _BYTES_PER_SECOND[case.device])
    return _START_S * (case.world_size if case.device == "cpu" else 1) + turns_s
