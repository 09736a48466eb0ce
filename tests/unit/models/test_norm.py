"""Our batch norm beside PyTorch's in fp64, and where it is PyTorch's."""

import pytest
import torch
from torch import Tensor, nn

from megaclass.models.norm import BatchNorm2d, _Normalised, exact_norms

ROWS = torch.channels_last


def case(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, nn.BatchNorm2d]:
    generator = torch.Generator().manual_seed(0)
    images, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    norm = nn.BatchNorm2d(shape[1], momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
    nn.init.uniform_(norm.bias, -1, 1, generator=generator)
    return 0.7 + 1.5 * images, 0.3 + grad, norm


def passed(norm: nn.Module, images: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """What both passes give, with sums over all values of a channel over their number."""
    values = images.numel() // images.shape[1]
    images = images.detach().requires_grad_()
    output = norm(images)
    output.backward(grad)
    sums = {name: parameter.grad / values for name, parameter in norm.named_parameters()}
    return {"output": output.detach(), "input": images.grad, **sums, **dict(norm.named_buffers())}


# Piece and row full or not, more channels than a row takes, sizes that only the images of a batch divide.
@pytest.mark.parametrize("shape", [(256, 16, 32, 32), (3, 48, 97, 97), (2, 1500, 5, 3), (7, 1, 31, 31)])
def test_channels_last_is_within_1e_6_of_fp64(shape):
    images, grad, norm = case(shape)
    found = passed(exact_norms(norm), images.to(memory_format=ROWS), grad)  # the gradient in another layout
    assert found["output"].is_contiguous(memory_format=ROWS)
    images, grad, norm = case(shape)
    expected = passed(norm.double(), images.double(), grad.double())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_it_is_torchs_wherever_that_is_right():
    images, grad, plain = case((4, 3, 8, 8))
    ours = exact_norms(case((4, 3, 8, 8))[2])
    assert type(ours) is BatchNorm2d
    assert ours.state_dict().keys() == plain.state_dict().keys()
    low, rows = images.bfloat16().to(memory_format=ROWS), images.to(memory_format=ROWS)
    compiled = (torch.compile(norm, backend="eager", fullgraph=True) for norm in (ours, plain))
    of_ours, of_plain = next(compiled), next(compiled)
    for one, other, given in ((ours, plain, images), (ours, plain, low), (of_ours, of_plain, rows)):
        found, expected = passed(one, given, grad.to(given.dtype)), passed(other, given, grad.to(given.dtype))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.equal(ours.eval()(rows), plain.eval()(rows))
    with pytest.raises(ValueError, match="more than 1 value"):
        ours.train()(images[:1, :, :1, :1])


@pytest.mark.parametrize("shape", [(4, 3, 2, 5, 6), (4, 3)])
@pytest.mark.parametrize("affine", [(), ("weight",), ("weight", "bias")])
def test_any_number_of_dimensions_with_or_without_weight_and_bias(shape, affine):
    images, grad, _ = case(shape)
    weight, bias = (
        torch.rand(3, requires_grad=True) if name in affine else None for name in ("weight", "bias")
    )
    leaves = [images.requires_grad_(), *(p for p in (weight, bias) if p is not None)]
    found = torch.autograd.grad(_Normalised.apply(images, weight, bias, 1e-5, False)[0], leaves, grad)
    output = torch.batch_norm(images, weight, bias, None, None, True, 0.0, 1e-5, False)
    torch.testing.assert_close(found, torch.autograd.grad(output, leaves, grad), rtol=1e-5, atol=1e-5)
