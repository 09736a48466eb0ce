"""PReLU against torch's: values and input gradients to the bit, slope gradients within the rounding of a sum."""

import pytest
import torch
from torch import nn

from megaclass.models.prelu import PReLU

CHANNELS_LAST = torch.channels_last


def gradients(kind, dtype, memory_format, grad_format):
    torch.manual_seed(0)
    module = kind(7).to(dtype)
    with torch.no_grad():
        module.weight.uniform_(-0.5, 0.5)
    x = torch.randn(3, 7, 5, 4).to(dtype).contiguous(memory_format=memory_format)
    x[0, 0, 0, :2] = torch.tensor([0.0, -0.0])
    x.requires_grad_()
    out = module(x)
    out.backward(torch.randn(3, 7, 5, 4).to(dtype).contiguous(memory_format=grad_format))
    return out.detach(), x.grad, module.weight.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, torch.contiguous_format])
@pytest.mark.parametrize("grad_format", [CHANNELS_LAST, torch.contiguous_format])
def test_it_is_torch_s(dtype, memory_format, grad_format):
    ours, theirs = (gradients(kind, dtype, memory_format, grad_format) for kind in (PReLU, nn.PReLU))
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(mine, other) and mine.stride() == other.stride()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(ours[2], theirs[2], rtol=tolerance, atol=tolerance)


def test_autocast_keeps_the_parameter_s_gradient_in_fp32():
    module = PReLU(4)
    x = torch.randn(2, 4, 3, 3).to(memory_format=CHANNELS_LAST)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x.bfloat16()).float().sum().backward()
    assert module.weight.grad.dtype == torch.float32 and module.weight.grad.isfinite().all()


def test_without_a_backward_pass_and_for_other_shapes_it_is_torch_s_own():
    module, plain = PReLU(4), nn.PReLU(4)
    rows = torch.randn(5, 4, requires_grad=True)
    torch.testing.assert_close(module(rows), plain(rows))
    images = torch.randn(2, 4, 3, 3).to(memory_format=CHANNELS_LAST)
    with torch.no_grad():
        assert torch.equal(module(images), plain(images))
    assert list(module.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_slopes_gradient_is_within_1e_6_of_fp64(dtype):
    torch.manual_seed(0)
    module = PReLU(16)  # its slopes are fp32 beside bf16 values, as under autocast
    x, grad = (torch.randn(48, 16, 32, 32).to(dtype).to(memory_format=CHANNELS_LAST) for _ in range(2))
    module(x).backward(grad)
    exact = (grad.double() * x.double().clamp_max(0)).sum((0, 2, 3))
    torch.testing.assert_close(module.weight.grad.double(), exact, rtol=0, atol=1e-6 * float(exact.abs().max()))
