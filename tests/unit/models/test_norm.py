"""Our batch norm beside PyTorch's in fp64, and where it is PyTorch's."""

import pytest
import torch
from torch import Tensor, nn

from megaclass.models.norm import _Normalised, exact_norms


def passed(wrap, images: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What both passes give, with sums over all values of a channel over their number."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(images.shape[1], momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
    grad = (0.3 + torch.randn(images.shape, generator=generator)).to(images.dtype)  # contiguous
    images = images.detach().requires_grad_()
    output = wrap(norm.to(dtype))(images)
    output.backward(grad)
    sums = {name: p.grad * p.numel() / images.numel() for name, p in norm.named_parameters()}
    return {"output": output.detach(), "input": images.grad, **sums, **dict(norm.named_buffers())}


# Piece and row full or not, more channels than a row takes, sizes that only the images of a batch divide.
@pytest.mark.parametrize("shape", [(256, 16, 32, 32), (3, 48, 97, 97), (2, 1500, 5, 3), (7, 1, 31, 31)])
def test_channels_last_is_within_1e_6_of_fp64(shape):
    images = 0.7 + 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = passed(exact_norms, images.to(memory_format=torch.channels_last))
    expected = passed(nn.Identity(), images.double(), torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_flat_images_are_within_3e_6_of_fp64():
    generator = torch.Generator().manual_seed(0)
    drawn, ink = (
        torch.randn(64, 48, 48, 48, generator=generator),
        torch.rand(64, 1, 48, 48, generator=generator),
    )
    images = torch.where(ink < 0.08, drawn, 0.3137 * torch.rand(48, 1, 1, generator=generator))
    found = exact_norms(nn.BatchNorm2d(48))(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found.double(), nn.BatchNorm2d(48).double()(images.double()), rtol=0, atol=3e-6)


def test_contiguous_and_bf16_images_get_what_torch_gives():
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for given in (images, images.bfloat16().to(memory_format=torch.channels_last)):
        torch.testing.assert_close(passed(exact_norms, given), passed(nn.Identity(), given), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 3, 2, 5, 6), (4, 3)])
@pytest.mark.parametrize("affine", [(), ("weight",), ("weight", "bias")])
def test_any_number_of_dimensions_with_or_without_weight_and_bias(shape, affine):
    generator = torch.Generator().manual_seed(0)
    images, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias = (
        torch.rand(3, generator=generator).requires_grad_() if name in affine else None for name in ("weight", "bias")
    )
    leaves = [images.requires_grad_(), *(p for p in (weight, bias) if p is not None)]
    found = torch.autograd.grad(_Normalised.apply(images, weight, bias, 1e-5, False)[0], leaves, grad)
    output = torch.batch_norm(images, weight, bias, None, None, True, 0.0, 1e-5, False)
    torch.testing.assert_close(found, torch.autograd.grad(output, leaves, grad), rtol=1e-5, atol=1e-5)
