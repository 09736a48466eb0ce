"""Other people's work that takes turns with ours: heads and training loops, run from a directory that the user gives,
and loaders and engines, where they are installed."""

from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from megaclass.bench.case import Implementation
from megaclass.bench.flags import names
from megaclass.bench.peers import arcface_torch, pytorch
from megaclass.bench.peers.loop import PeerLoop
from megaclass.errors import UserError, lookup

LOOPS: dict[str, type[PeerLoop]] = {"arcface_torch": arcface_torch.Loop, "pytorch": pytorch.Loop}
# glibc gives large blocks back to the kernel when they are freed, and every step faults their pages in again. Told to
# keep them, as ours does, a peer runs about twice as fast on a CPU.
_TUNED: dict[str, str | None] = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def peer_flags(parser: ArgumentParser, known: Iterable[str]) -> None:
    add, peer = parser.add_argument, f"what takes turns with ours: {', '.join(known)}"
    add("--peer", type=names, default=[], metavar="LIST", help=peer)
    add("--peer-path", default="", help="directory with arcface_torch's code, which is not changed")


def peers_asked(options: Any, known: Iterable[str]) -> list[str]:
    """Their names. UserError: none of that name, or a directory that none needs."""
    if options.peer_path and "arcface_torch" not in options.peer:
        raise UserError("--peer-path goes with --peer arcface_torch")
    return [lookup({one: one for one in known}, name, "peer") for name in options.peer]


def implementation(name: str, case: Any, **more: Any) -> Implementation:
    """A peer, with its allocator tuned where it computes on a CPU."""
    if case.device == "cpu":
        more |= {"extra": {"malloc": "tuned"}, "variables": _TUNED}
    return Implementation(name=name, **more)
