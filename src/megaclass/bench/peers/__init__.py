"""Other people's work as contenders: heads and training loops, run from a directory that the user gives, and loaders,
where they are installed."""

from types import ModuleType
from typing import Any

from megaclass.bench.peers import arcface_torch, arcface_torch_loop, dali, nvjpeg, pillow, pytorch_loop

PEERS = {"arcface_torch": arcface_torch}
LOOPS: dict[str, Any] = {"arcface_torch": arcface_torch_loop, "pytorch": pytorch_loop}
LOADERS: dict[str, ModuleType] = {"dali": dali, "pillow": pillow, "nvjpeg": nvjpeg}
