"""What of a backbone is shared by two gloo processes: statistics of norms, and gradients, rounded on the way."""

import pytest
import torch
from torch import Tensor, nn

from megaclass.models.norm import average_norm_buffers, exact_norms
from megaclass.parallel import groups
from megaclass.parallel.gradients import COMPRESSIONS, averaging
from ranks import run_ranks

pytestmark = pytest.mark.dist

ROWS = (5, 3)  # of each rank: unequal, as at the end of an epoch
CPU = torch.device("cpu")


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


def norms() -> dict:
    rank = groups.rank()
    own = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
    images, weights = (tensor[own] for tensor in batch())
    module = exact_norms(network(), over_ranks=True)
    output, images_grad = train_twice(module, images, weights)
    for parameter in module.parameters():
        groups.all_ranks().all_reduce_(parameter.grad)
    local = network()
    local(images)
    running_mean = local[1].running_mean.clone()
    average_norm_buffers(local)
    return {
        "output": output,
        "images_grad": images_grad,
        "grads": {name: p.grad for name, p in module.named_parameters()},
        "buffers": dict(module.named_buffers()),
        "evaluated": module.eval()(images).detach(),
        "local_mean": running_mean,
        "averaged": local.state_dict(),
    }


def trained(layout: torch.memory_format) -> Tensor:
    """Parameters and statistics after eight steps on 512 images, of which each rank sees its part."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8)]
    module = exact_norms(nn.Sequential(*layers), over_ranks=True).to(memory_format=layout)
    everyone, images, targets = groups.all_ranks(), 3 + torch.randn(512, 3, 32, 32), torch.randn(512, 8, 7, 7)
    own = slice(everyone.rank, None, everyone.size)
    optimizer = torch.optim.SGD(module.parameters(), 0.2, momentum=0.9)
    for _ in range(8):
        loss = (module(images[own].to(memory_format=layout)) - targets[own]).square().sum() / targets.numel()
        optimizer.zero_grad()
        loss.backward()
        for parameter in module.parameters():
            everyone.all_reduce_(parameter.grad)
        optimizer.step()
    return torch.cat([tensor.detach().flatten() for tensor in module.state_dict().values()])


def gradients(compression: str) -> Tensor:
    """Of three steps: buckets are built anew after the first. 13 columns: no bucket divides evenly."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(13, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))
    module, found = averaging(layers, CPU, 0.003, compression), []
    for step in range(3):
        generator = torch.Generator().manual_seed(100 * step + groups.rank())
        module.zero_grad()
        module(torch.randn(8, 13, generator=generator)).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    return torch.stack(found)


LAYOUTS = (torch.contiguous_format, torch.channels_last)


def work() -> tuple[dict, dict[str, Tensor], list]:
    of_compressions = {compression: gradients(compression) for compression in COMPRESSIONS}
    return norms(), of_compressions, [trained(layout) for layout in LAYOUTS]


@pytest.fixture(scope="module")
def found():
    return run_ranks(2, work)


def test_two_ranks_are_one_process_on_the_global_batch(found):
    of_ranks = [norms for norms, *_ in found]
    module = network()
    images, weights = batch()
    output, images_grad = train_twice(module, images, weights)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([f["output"] for f in of_ranks]), output, **close)
    torch.testing.assert_close(torch.cat([f["images_grad"] for f in of_ranks]), images_grad, **close)
    for rank in of_ranks:
        torch.testing.assert_close(rank["grads"], {n: p.grad for n, p in module.named_parameters()}, **close)
        torch.testing.assert_close(rank["buffers"], dict(module.named_buffers()), **close)
    evaluated = torch.cat([f["evaluated"] for f in of_ranks])
    torch.testing.assert_close(evaluated, module.eval()(images).detach(), **close)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_steps_on_two_ranks_are_those_of_one_process_in_either_layout(found, layout):
    ours = found[0][2][LAYOUTS.index(layout)]
    for expected in (trained(layout), trained(torch.contiguous_format)):  # PyTorch's sums of rows: 2e-4
        torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)


def test_averaged_buffers_are_the_mean_and_the_same_everywhere(found):
    (one, *_), (other, *_) = found
    torch.testing.assert_close(one["averaged"], other["averaged"], rtol=0, atol=0)
    torch.testing.assert_close(one["averaged"]["1.running_mean"], (one["local_mean"] + other["local_mean"]) / 2)
    assert not torch.equal(one["local_mean"], other["local_mean"])


@pytest.mark.parametrize(("compression", "tolerance"), [("fp16", 4e-3), ("bf16", 3e-2)])
def test_rounded_gradients_are_the_mean_of_all_ranks(found, compression, tolerance):
    (_, ours, _), (_, theirs, _) = found
    assert torch.equal(ours[compression], theirs[compression])  # or weights would drift apart
    plain = ours["none"]
    error = ((ours[compression] - plain).abs().amax(1) / plain.abs().amax(1)).max()
    assert 1e-5 < error < tolerance  # of the largest: rounded once for each rank and once for the sum
