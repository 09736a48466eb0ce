"""Where the ranks of a run meet: a store that holds what this attempt wrote, and nothing of an earlier one.

torchrun keeps one store for all attempts of a job, and PyTorch writes the addresses of the ranks under the same keys
in each. A restarted rank that comes first reads where a dead one listened, and fails (pytorch/pytorch issues 135712
and 167288, seen with 2.13). So rank 0 names each attempt, and shakes hands with every rank over that name.
"""

import contextlib
import datetime
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

# DistributedDataParallel imports it, and its functions keep the group of that moment as the default of an argument:
# after that nothing ends the group's threads. So it comes before there is a group. A gloo thread that wants Python to
# free a tensor just as Python ends is ended in the middle of C++ ("terminate called without an active exception").
import torch.distributed.nn.functional
from torch.distributed.rendezvous import rendezvous

from megaclass.errors import LOST_RANK_STATUS, AgreedError, LostRankError, UserError
from megaclass.parallel.agreement import difference

_LOOK_AGAIN_S = 0.5
# So long a rank with an error waits for others to tell it to: they may still load their libraries.
_HEAR_ME_S = 30.0
_READ_S = 5.0
_ERROR = "error"  # the name of the fact that a rank cannot start


@dataclass(frozen=True)
class Place:
    """This process as the environment describes it: ``rank`` of ``size``, which meet at ``host`` and ``port``."""

    rank: int = 0
    size: int = 1
    host: str = ""
    port: int = 0


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


# -- the environment ------------------------------------------------------------------------------------


def number(name: str, default: int | None = None, least: int = 0, most: int = 10**6) -> int:
    """What an environment variable of torchrun says. UserError where it is no number of ``least`` to ``most``."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        problem = "is not set" if text is None else f"is {text!r}: a number of {least} to {most} is needed"
        raise UserError(
            f"{name} {problem}; torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT: start by it, or set all "
            "four, or unset WORLD_SIZE to train in one process"
        )
    return int(text)


def place() -> Place:
    """UserError where the environment describes half a job, or none that can be."""
    size = number("WORLD_SIZE", 1)
    if size < 2:
        return Place()
    host = os.environ.get("MASTER_ADDR", "")
    here = Place(number("RANK", most=size - 1), size, host, number("MASTER_PORT", most=65535))
    try:
        socket.getaddrinfo(host or None, here.port)
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR is {host!r}: {error.strerror}; name the machine of rank 0 as this one knows it"
        ) from None
    return here


# -- to meet --------------------------------------------------------------------------------------------


def join(here: Place, device: torch.device, timeout: datetime.timedelta, facts: Mapping[str, str]) -> Meeting:
    """Meet the other ranks where torchrun's environment variables say, and make PyTorch's group of all.

    LostRankError where they do not come in time; UserError on every rank where their facts differ, or one declines.
    """
    with _losses_told(here, timeout):
        meeting = _meet(here, timeout)
        _agree(meeting, dict(facts))
        cuda = device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",  # small objects are never exchanged over nccl
            store=meeting.store,
            rank=meeting.rank,
            world_size=meeting.size,
            timeout=timeout,
            device_id=device if cuda else None,
        )
    return meeting


def decline(error: UserError) -> None:
    """Tell the other ranks, which wait for this one, why it does not come: AgreedError on all of them.

    Returns where there are none, or they do not come.
    """
    wait = datetime.timedelta(seconds=_HEAR_ME_S)
    with contextlib.suppress(LostRankError):
        try:
            here = place()
        except UserError:
            return
        if here.size > 1:
            with _losses_told(here, wait):
                _agree(_meet(here, wait), {_ERROR: str(error)})


@contextlib.contextmanager
def _losses_told(here: Place, timeout: datetime.timedelta) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        reason = str(error).splitlines()[0]
        if here.rank == 0 and (os.strerror(errno.EADDRINUSE) in reason or "EADDRINUSE" in reason):
            raise UserError(
                f"MASTER_PORT: port {here.port} of this machine is taken by another program; name another on all ranks"
            ) from None
        raise LostRankError(
            f"rank {here.rank} of {here.size} did not meet the others at {here.host}:{here.port} "
            f"(run.timeout_s {timeout.total_seconds():g}): {reason}"
        ) from error


def is_loss(error: RuntimeError) -> bool:
    """Whether a collective or a store says that the others are gone."""
    # gloo has no exception type of its own, but names its source file.
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def _meet(here: Place, timeout: datetime.timedelta) -> Meeting:
    with _ending_where_nobody_answers(here, timeout):
        store, rank, size = next(rendezvous("env://", timeout=timeout))
    name = _name_attempt(store, size) if rank == 0 else _learn_name(store, rank, timeout)
    return Meeting(name, rank, size, dist.PrefixStore(name, store))


@contextlib.contextmanager
def _ending_where_nobody_answers(here: Place, timeout: datetime.timedelta) -> Iterator[None]:
    """PyTorch waits without limit for the first word of what listens at the port, whatever that is."""

    def end() -> None:
        line = (
            f"megaclass: rank {here.rank} of {here.size} did not meet the others: what listens at {here.host}:"
            f"{here.port} does not answer as their store does (run.timeout_s {timeout.total_seconds():g})\n"
        )
        os.write(2, line.encode())
        os._exit(LOST_RANK_STATUS)  # the thread that waits cannot be told

    timer = threading.Timer(timeout.total_seconds() + _READ_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


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


def _agree(meeting: Meeting, facts: dict[str, str]) -> None:
    """Compare what the ranks have written, through the store: there is no process group yet. AgreedError on each."""
    store = meeting.store
    store.set(f"facts/{meeting.rank}", json.dumps(facts))
    if meeting.rank == 0:
        told = [json.loads(store.get(f"facts/{rank}")) for rank in range(meeting.size)]
        errors = [one[_ERROR] for one in told if _ERROR in one]
        store.set("verdict", errors[0] if errors else difference(told))
    verdict = store.get("verdict").decode()
    if verdict:
        heard = store.add("heard", 1)
        deadline = time.monotonic() + _READ_S
        # The store may be in this process, which must not end before the others have read.
        while meeting.rank == 0 and heard < meeting.size and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN_S / 10)
            heard = store.add("heard", 0)
        raise AgreedError(verdict)
