"""Other people's work that takes turns with ours: heads and training loops, run from a directory that the user gives,
and loaders and engines, where they are installed."""

from megaclass.bench.peers import arcface_torch, pytorch
from megaclass.bench.peers.loop import PeerLoop

LOOPS: dict[str, type[PeerLoop]] = {"arcface_torch": arcface_torch.Loop, "pytorch": pytorch.Loop}
