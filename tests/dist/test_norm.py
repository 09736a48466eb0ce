"""Synchronised norms on two gloo processes against one process with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from megaclass.models.norm import average_norm_buffers, synchronise_norms

pytestmark = pytest.mark.dist

ROWS = (5, 3)  # of each rank: unequal, as at the end of an epoch


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.Flatten(),
        nn.Linear(4 * 16, 6),
        nn.BatchNorm1d(6, momentum=None),
    )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = 3 + torch.randn(sum(ROWS), 3, 6, 6, generator=generator)
    return images, torch.randn(sum(ROWS), 6, generator=generator)


def train_twice(module: nn.Module, images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of the images in the second of two passes; parameter gradients of both add up."""
    for _ in range(2):
        images = images.detach().requires_grad_()
        output = module(images)
        (output * weights).sum().backward()
    return output.detach(), images.grad


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(ROWS))
    try:
        own = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
        images, weights = (tensor[own] for tensor in batch())
        module = synchronise_norms(network())
        output, images_grad = train_twice(module, images, weights)
        for parameter in module.parameters():
            dist.all_reduce(parameter.grad)

        local = network()
        local(images)
        running_mean = local[1].running_mean.clone()
        average_norm_buffers(local)
        found = {
            "output": output,
            "images_grad": images_grad,
            "grads": {name: p.grad for name, p in module.named_parameters()},
            "buffers": dict(module.named_buffers()),
            "evaluated": module.eval()(images).detach(),
            "local_mean": running_mean,
            "averaged": local.state_dict(),
        }
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("norm")
    mp.spawn(worker, (str(folder),), nprocs=len(ROWS))
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(len(ROWS))]


def test_two_ranks_are_one_process_on_the_global_batch(found):
    module = network()
    images, weights = batch()
    output, images_grad = train_twice(module, images, weights)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([f["output"] for f in found]), output, **close)
    torch.testing.assert_close(torch.cat([f["images_grad"] for f in found]), images_grad, **close)
    for rank in found:
        torch.testing.assert_close(rank["grads"], {n: p.grad for n, p in module.named_parameters()}, **close)
        torch.testing.assert_close(rank["buffers"], dict(module.named_buffers()), **close)
    torch.testing.assert_close(
        torch.cat([f["evaluated"] for f in found]), module.eval()(images).detach(), **close
    )


def test_averaged_buffers_are_the_mean_and_the_same_everywhere(found):
    torch.testing.assert_close(found[0]["averaged"], found[1]["averaged"], rtol=0, atol=0)
    mean = (found[0]["local_mean"] + found[1]["local_mean"]) / 2
    torch.testing.assert_close(found[0]["averaged"]["1.running_mean"], mean)
    assert not torch.equal(found[0]["local_mean"], found[1]["local_mean"])
