"""Margins where the oracle does not lead: published numbers, the ends of the angle, and the limits of options."""

import math

import pytest
import torch

from head_reference import dense_loss
from megaclass import (
    AdaFace,
    ArcFace,
    CosFace,
    FrequencyMargin,
    HeadSGD,
    Margin,
    PopulationMargin,
    SphereFace,
    UserError,
)
from megaclass.heads.margins import MAX_SCALE, Samples, build_margin, static_shift
from megaclass.heads.partial_fc import PartialFC
from megaclass.parallel.seeding import derive_key

NOBODY = Samples(torch.zeros(1, dtype=torch.int64))


def test_gradients_differ_as_published() -> None:
    # At cos 0.9 and m 0.5 the exact gradient of ArcFace is 1.87 times the one that arcface_torch uses.
    cos = torch.tensor([0.9], dtype=torch.float64)
    assert ArcFace(gradient="exact").target(cos, NOBODY).slope_B.item() == pytest.approx(1.87, abs=0.01)
    assert ArcFace().target(cos, NOBODY).slope_B.item() == 1.0
    assert CosFace(gradient="exact").target(cos, NOBODY).slope_B.item() == 1.0


@pytest.mark.parametrize("margin", [ArcFace(gradient="exact"), CosFace(), SphereFace(gradient="exact")], ids=str)
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
    assert ((embeddings.grad - gradient).norm() / gradient.norm()).item() < 1e-3  # cos near -1: nothing is left


@pytest.mark.parametrize(
    "wrong",
    [{"gradient": "none"}, {"scale": 0.0}, {"scale": 76.0}, {"m1": 0.0}, {"filter_threshold": 2.0}],
    ids=str,
)
def test_refuses_what_makes_no_sense(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Margin(**wrong)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("adaface", "m=0.4, hh=1", "head.margin_options: adaface has no 'hh'.*did you mean 'h'"),
        ("adaface", "h", "'h' is not a name, '=' and a number"),
        ("arcface", "margin=nan", "'margin=nan' is not a name, '=' and a number"),
        ("magface", "u_a=1e308", "'u_a=1e308' is not a name, '=' and a number"),
        ("adaface", "t_alpha=2", r"head.margin_options: adaface: t_alpha must lie in \[0, 1\]"),
        ("arcface", "margin=30", r"head.margin_options: arcface: margin must lie in \[0, 2\]"),
        ("curricularface", "m=0.4, m=0.5", "head.margin_options: m is given twice"),
        ("magface", "l_a=120", "head.margin_options: magface: l_a must lie between 0 and u_a"),
        ("arcface", "scale=3", "arcface has no 'scale'.*it has margin"),
        ("adafase", "", "head.margin.*did you mean 'adaface'"),
    ],
)
def test_refuses_options_in_a_line(name: str, options: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_margin(name, options, lambda: torch.ones(3))


def test_options_reach_the_margin() -> None:
    made = build_margin("elastic_cosface", "m=0.2,std=0", lambda: torch.ones(3), scale=10.0)
    cos = torch.tensor([0.5], dtype=torch.float64)
    assert made.target(cos, NOBODY).logit_B.item() == pytest.approx(3.0)


def test_draws_are_normal_and_of_the_place_in_the_global_batch() -> None:
    labels = torch.zeros(50_000, dtype=torch.int64)
    drawn, other = (Samples(labels, key=key).normals() for key in (derive_key(1), derive_key(2)))
    points = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    share = (drawn[:, None] < points).double().mean(0)
    torch.testing.assert_close(share, torch.special.ndtr(points), rtol=0, atol=0.01)
    for pair in ((drawn, other), (drawn[1:], drawn[:-1])):
        assert abs(torch.corrcoef(torch.stack(pair))[0, 1]) < 0.02
    assert torch.equal(Samples(labels[:100], key=derive_key(1), first=900).normals(), drawn[900:1000])


def test_the_rarest_class_has_the_largest_margin_and_ends_are_as_asked() -> None:
    margins = FrequencyMargin(numbers_C=torch.tensor([16, 1, 81, 0])).class_margins()
    a = 0.45 / (1 - 1 / 3)  # m = a n^-1/4 + b, 0.5 at n = 1, 0.05 at n = 81
    torch.testing.assert_close(margins, torch.tensor([0.5 - a / 2, 0.5, 0.05, 0.5]))
    assert PopulationMargin(numbers_C=torch.zeros(2)).class_margins().tolist() == pytest.approx([0.8 * 0.65] * 2)
    equal = FrequencyMargin(numbers_C=torch.full((3,), 7)).class_margins()
    assert equal.tolist() == pytest.approx([0.275] * 3)
    emptied = FrequencyMargin(numbers_C=torch.tensor([16, 1, 81, 0]) * 20).class_margins()
    torch.testing.assert_close(emptied, margins)  # not by the one that has none


def test_running_numbers_travel_with_the_head_and_a_bad_step_leaves_them() -> None:
    head, labels = PartialFC(10, 8, margin=AdaFace(t_alpha=0.5)), torch.arange(10)
    optimizer = HeadSGD(head)

    def step(embeddings: torch.Tensor) -> list[float]:
        head(embeddings.requires_grad_(), labels).backward()
        optimizer.step()
        return head.margin_state.tolist()

    before = step(torch.full((10, 8), 2.0))
    assert before == pytest.approx([(20 + 32**0.5) / 2, 50.0])
    assert step(torch.full((10, 8), torch.nan)) == before
    other, earlier = PartialFC(10, 8, margin=AdaFace()), head.state_dict()
    other.load_state_dict(earlier)
    assert other.margin_state.tolist() == before
    del earlier["margin_state"]  # of an earlier version
    PartialFC(10, 8, margin=AdaFace()).load_state_dict(earlier)
    assert "margin_state" not in PartialFC(10, 8).state_dict()
