"""Hooks that average gradients, on a CUDA device: one rank, whose mean is its own gradient."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from megaclass.parallel.gradients import communication_hook

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(hook):
    """After several buckets in flight at once, read as soon as the backward pass has returned."""
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(512, 512), nn.Tanh())]
    module = DistributedDataParallel(
        nn.Sequential(*layers).cuda(), bucket_cap_mb=1, gradient_as_bucket_view=True
    )
    if hook:
        module.register_comm_hook(*hook)
    for _ in range(3):
        module.zero_grad()
        module(torch.ones(256, 512, device="cuda")).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize(("compression", "tolerance"), [("none", 1e-6), ("fp16", 1e-3), ("bf16", 8e-3)])
def test_what_returns_is_the_mean(alone, monkeypatch, compression, tolerance):
    monkeypatch.setenv("GROUP_RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    own, averaged = gradients(None), gradients(communication_hook("hierarchical", compression))
    assert (averaged - own).norm() <= tolerance * own.norm()
