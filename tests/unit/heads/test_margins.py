"""Margins where the oracle does not lead: published numbers, the ends of the angle, and the limits of options."""

import math

import pytest
import torch

from head_reference import dense_loss
from megaclass.heads.margins import MAX_SCALE, ArcFace, CosFace, Margin, Samples, SphereFace, static_shift
from megaclass.heads.partial_fc import PartialFC

NOBODY = Samples(torch.zeros(1, dtype=torch.int64))


def test_gradients_differ_as_published() -> None:
    # At cos 0.9 and m 0.5 the exact gradient of ArcFace is 1.87 times the one that arcface_torch uses.
    cos = torch.tensor([0.9], dtype=torch.float64)
    assert ArcFace(gradient="exact").target(cos, NOBODY).slope_B.item() == pytest.approx(1.87, abs=0.01)
    assert ArcFace().target(cos, NOBODY).slope_B.item() == 1.0
    assert CosFace(gradient="exact").target(cos, NOBODY).slope_B.item() == 1.0


@pytest.mark.parametrize(
    "margin", [ArcFace(gradient="exact"), CosFace(), SphereFace(gradient="exact")], ids=str
)
def test_the_slope_is_that_of_the_logits(margin: Margin) -> None:
    cos = torch.linspace(-0.9, 0.9, 19, dtype=torch.float64, requires_grad=True)
    logit, slope, *_ = margin.target(cos, NOBODY)
    (expected,) = torch.autograd.grad(logit.sum() / margin.scale, cos)
    torch.testing.assert_close(slope.detach(), expected)


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize("cos", [1.0, 1.0 + 1e-6, -1.0 - 1e-6])
def test_stays_finite_where_the_angle_ends(cos: float, gradient: str) -> None:
    for value in ArcFace(gradient=gradient).target(torch.tensor([cos], dtype=torch.float64), NOBODY)[:2]:
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("classes", [1, 1000, 100_000_000])
@pytest.mark.parametrize("scale", [1.0, 64.0, MAX_SCALE])
def test_both_ends_of_a_shifted_sum_fit_fp32(scale: float, classes: int) -> None:
    shift = static_shift(scale, classes)
    assert classes * math.exp(scale - shift) < torch.finfo(torch.float32).max
    assert math.exp(-scale - shift) > torch.finfo(torch.float32).tiny


def test_embeddings_opposed_to_every_centre() -> None:
    torch.manual_seed(0)
    head = PartialFC(10, 8, margin=ArcFace(scale=MAX_SCALE))
    with torch.no_grad():
        head.weight.copy_(torch.randn(10, 8) * 0.1 + 1)
    embeddings = torch.full((3, 8), -1.0, requires_grad=True)
    labels = torch.tensor([1, 1, 4])
    expected = dense_loss(embeddings, labels, head.weight, head.margin)
    (gradient,) = torch.autograd.grad(expected, embeddings)
    loss = head(embeddings, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=3e-5)  # fp32 logits of length 75
    assert (
        (embeddings.grad - gradient).norm() / gradient.norm()
    ).item() < 1e-3  # cos near -1: nothing is left


@pytest.mark.parametrize(
    "wrong",
    [{"gradient": "none"}, {"scale": 0.0}, {"scale": 76.0}, {"m1": 0.0}, {"filter_threshold": 2.0}],
    ids=str,
)
def test_refuses_what_makes_no_sense(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Margin(**wrong)
