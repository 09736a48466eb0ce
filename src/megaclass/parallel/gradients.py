"""How the gradients of a module are averaged over the ranks."""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from megaclass.errors import lookup
from megaclass.parallel.groups import world_size

COMPRESSIONS = {"none": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def averaging(module: nn.Module, device: torch.device, bucket_mb: float = 0.0, compression: str = "none") -> nn.Module:
    """The module inside DistributedDataParallel, or itself where there is one rank.

    bucket_mb: gradients that travel together; 0: as PyTorch has it. compression: rounded to 16 bits on the way.
    """
    dtype = lookup(COMPRESSIONS, compression, "gradient compression")
    if world_size() == 1:
        return module
    device_ids = [device] if device.type == "cuda" else None
    # PyTorch 2.13 renamed the option; 2.11 knows only the second name.
    known = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {sync_buffers: False}
    if bucket_mb:  # to say the default would give up PyTorch's small first bucket
        options["bucket_cap_mb"] = bucket_mb
    model = DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True, **options)
    if dtype is not None:
        model.register_comm_hook(dtype, rounded_mean)
    return model


def rounded_mean(dtype: torch.dtype, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean over all ranks, in place in the bucket. Not PyTorch's own hook: DistributedDataParallel refuses that one
    for bf16 where there is no nccl."""
    buffer = bucket.buffer()
    rounded = (buffer / world_size()).to(dtype)  # divided first, or fp16 sums could overflow
    work = dist.all_reduce(rounded, async_op=True)
    assert work is not None
    return work.get_future().then(lambda _: buffer.copy_(rounded))
