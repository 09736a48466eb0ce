"""Other people's work as contenders: heads, run from a directory that the user gives, and loaders, where they are
installed."""

from types import ModuleType

from megaclass.bench.peers import arcface_torch, dali, nvjpeg, pillow

PEERS = {"arcface_torch": arcface_torch}
LOADERS: dict[str, ModuleType] = {"dali": dali, "pillow": pillow, "nvjpeg": nvjpeg}
