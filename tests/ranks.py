"""Run a function on several gloo processes and collect what each returned."""

import datetime
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _entry(
    rank: int, ranks: int, node_ranks: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GROUP_RANK": str(rank // node_ranks), "LOCAL_RANK": str(rank % node_ranks)}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        torch.save(function(*args), Path(folder) / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_ranks(ranks: int, function: Callable[..., Any], *args: Any, node_ranks: int = 0) -> list[Any]:
    """``function(*args)`` on every one of ``ranks`` processes; the results in rank order.

    One rank runs in this process, without a process group: what the others are compared with. ``node_ranks`` of
    the others share what torchrun would call a node; 0: all.
    """
    if ranks == 1:
        return [function(*args)]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_entry, (ranks, node_ranks or ranks, folder, function, args), nprocs=ranks, join=True)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"result-{rank}.pt", weights_only=False) for rank in range(ranks)]
