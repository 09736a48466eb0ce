"""Where the ranks of a run meet: a store that holds what this attempt wrote, and nothing of an earlier one.

torchrun keeps one store for all attempts of a job, and PyTorch writes the addresses of the ranks under the same keys
in each. A restarted rank that comes first reads where a dead one listened, and fails (pytorch/pytorch issues 135712
and 167288, seen with 2.13). So rank 0 names each attempt, and shakes hands with every rank over that name.
"""

import datetime
import os
import secrets
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from megaclass.errors import LostRankError

_LOOK_AGAIN_S = 0.5


@dataclass(frozen=True)
class Meeting:
    """This rank of ``size``, and the store that all of them share under ``name``."""

    name: str
    rank: int
    size: int
    store: dist.Store

    def another_store(self, timeout: datetime.timedelta) -> dist.Store:
        """The same store through a connection of its own: a call that waits holds up its own connection alone."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        own = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        return dist.PrefixStore(self.name, own)


def join(device: torch.device, timeout: datetime.timedelta) -> Meeting:
    """Meet the other ranks where torchrun's environment variables say, and make PyTorch's group of all.

    LostRankError where they do not come in time.
    """
    try:
        meeting = _meet(timeout)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=meeting.store,
            rank=meeting.rank,
            world_size=meeting.size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    except RuntimeError as error:
        if not is_loss(error):
            raise
        raise LostRankError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not meet the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (run.timeout_s "
            f"{timeout.total_seconds():g}): {str(error).splitlines()[0]}"
        ) from error
    return meeting


def is_loss(error: RuntimeError) -> bool:
    """Whether a collective or a store says that the others are gone."""
    # gloo has no exception type of its own, but names its source file.
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def _meet(timeout: datetime.timedelta) -> Meeting:
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    name = _name_attempt(store, size) if rank == 0 else _learn_name(store, rank, timeout)
    return Meeting(name, rank, size, dist.PrefixStore(name, store))


def _name_attempt(store: dist.Store, size: int) -> str:
    name = secrets.token_hex(8)
    store.set("attempt", name)
    for rank in range(1, size):
        store.set(f"{name}/seen/{rank}", store.get(f"{name}/here/{rank}").decode())
    return name


def _learn_name(store: dist.Store, rank: int, timeout: datetime.timedelta) -> str:
    """The name that stands there may be that of an earlier attempt: only today's rank 0 returns today's word."""
    word, deadline = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    while True:
        name = store.get("attempt").decode()
        store.set(f"{name}/here/{rank}", word)
        seen, wait = f"{name}/seen/{rank}", datetime.timedelta(seconds=_LOOK_AGAIN_S)
        try:
            store.wait([seen], wait)
            if store.get(seen).decode() == word:
                return name
            time.sleep(_LOOK_AGAIN_S / 10)
        except dist.DistStoreError:
            if time.monotonic() > deadline:
                raise
