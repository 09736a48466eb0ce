"""Other people's work that takes turns with ours: heads and training loops, run from a directory that the user gives,
and loaders and engines, where they are installed."""

from typing import Any

from megaclass.bench.peers import arcface_torch, pytorch

LOOPS: dict[str, Any] = {"arcface_torch": arcface_torch, "pytorch": pytorch}
"""Modules with a training loop, see :class:`megaclass.bench.peers.loop.PeerLoop`."""
