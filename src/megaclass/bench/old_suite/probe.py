"""The process that measures a machine for a suite, and ends: one JSON object in, one out."""

import json
import sys
from typing import Any

import torch

from megaclass.bench import limits
from megaclass.results import machine

_PRECISIONS = {"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}
_SIDE = {"cpu": 1024, "cuda": 8192}


def measured(device: str) -> dict[str, Any]:
    """What :class:`megaclass.bench.old_suite.machine.Machine` is made from; ``memory_bytes`` is what is free now."""
    on_gpu = device == "cuda"
    devices = torch.cuda.device_count() if on_gpu else 1
    free = [torch.cuda.mem_get_info(i)[0] for i in range(devices)] if on_gpu else [machine.available_memory()]
    where = torch.device(device)
    return {
        "devices": devices,
        "memory_bytes": min(free),
        "product_flops": {
            name: limits.product_flops(name, where, _SIDE[device]) for name in _PRECISIONS[device]
        },
        "bytes_per_second": limits.copy_bytes_per_second(where),
    }


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.stdin.readline())["device"])), flush=True)
