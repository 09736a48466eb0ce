"""Operations and bytes of a backbone, against PyTorch's counter, published numbers and counts by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from megaclass.bench.cost import backbone_cost
from megaclass.bench.roofline.fusing import fused
from megaclass.bench.roofline.plan import config_of
from megaclass.bench.roofline.trace import DATA, FORWARD, WEIGHTS, trace, trace_module
from megaclass.models.registry import build_backbone


def flops(ops, direction=None):
    return sum(op.flops for op in ops if direction in (None, op.direction))


def moved(ops, direction=None):
    """Bytes of an image."""
    return sum(op.moved.image for op in ops if direction in (None, op.direction))


@pytest.mark.parametrize(
    ("name", "size", "classes", "published"),
    [
        ("resnet18", 224, 1000, 1.81),  # torchvision's table of weights
        ("resnet50", 224, 1000, 4.09),
        ("resnet101", 224, 1000, 7.83),
        ("iresnet50", 112, 0, 6.33),  # InsightFace's model zoo
        ("iresnet100", 112, 0, 12.12),
        ("mobilefacenet", 112, 0, 0.45),
    ],
)
def test_forward_operations_are_the_published_ones(name, size, classes, published):
    ops = trace(config_of(name, size), "bf16")
    products = flops(ops, FORWARD) / 2 + classes * backbone_cost(config_of(name, size)).embedding_dim
    assert products / 1e9 == pytest.approx(published, rel=0.03 if name == "mobilefacenet" else 0.004)


@pytest.mark.parametrize(("name", "size"), [("iresnet18", 112), ("resnet18", 64)])
def test_all_operations_are_those_of_pytorchs_counter(name, size):
    with torch.device("meta"):
        model = build_backbone(name, image_size=size)
        images = torch.empty(2, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        out = model(images)
        out.backward(torch.empty_like(out))
    assert flops(trace(config_of(name, size), "fp32")) == counter.get_total_flops() / 2


def test_the_images_need_no_gradient():
    ops = trace(config_of("resnet18", 64), "fp32")
    stem = 2 * 64 * 3 * 7 * 7 * 32 * 32
    assert flops(ops, FORWARD) - flops(ops, DATA) == stem
    assert flops(ops, FORWARD) == flops(ops, WEIGHTS)


def test_a_grouped_convolution_multiplies_within_its_groups():
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        )
    ops = trace_module(model, 4, "fp32")
    pointwise, depthwise = 2 * 8 * 3 * 16, 2 * 8 * 9 * 16
    assert [flops(ops, d) for d in (FORWARD, DATA, WEIGHTS)] == [
        pointwise + depthwise,
        depthwise,
        pointwise + depthwise,
    ]


class Block(nn.Module):
    """Of 8 channels: relu(norm(conv(x)) + x)."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 1, bias=False)
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.leave = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x):
        x = self.enter(x)
        return self.leave(torch.relu(self.norm(self.conv(x)) + x))


def block_ops(precision):
    with torch.device("meta"):
        return trace_module(Block(), 4, precision)


@pytest.mark.parametrize(("precision", "size"), [("bf16", 2), ("fp32", 4)])
def test_bytes_of_a_block_as_counted_by_hand(precision, size):
    image, wide = 3 * 16 * size, 8 * 16 * size
    ops = block_ops(precision)
    # Three convolutions, a norm, a sum of two and an activation.
    assert moved(ops, FORWARD) == (image + wide) + 2 * wide + 2 * wide + 3 * wide + 2 * wide + 2 * wide
    # Backward: of two convolutions; activation (gradient, result), norm (gradient, input), and the sum of the gradients
    # of both branches. The sum forward passes its gradient on as it is.
    assert moved(ops, DATA) == 2 * 2 * wide + 3 * wide + 3 * wide + 3 * wide
    assert moved(ops, WEIGHTS) == (image + wide) + 2 * wide + 2 * wide
    weights = 4 * (8 * 3 + 8 * 8 * 9 + 8 * 8)  # fp32 whatever the precision
    products = [op for op in ops if op.kind == "conv"]
    assert sum(op.moved.step for op in products if op.direction == FORWARD) == weights
    assert sum(op.moved.step for op in products if op.direction == WEIGHTS) == weights
    assert sum(op.moved.step for op in products if op.direction == DATA) == weights - 4 * 8 * 3


def test_one_pass_over_norm_sum_and_activation():
    image, wide = 3 * 16 * 2, 8 * 16 * 2
    ops = fused(block_ops("bf16"))
    assert [op.kind for op in ops if op.direction == FORWARD] == [
        "conv",
        "conv",
        "norm+add+activation",
        "conv",
    ]
    # The pass reads the convolution's output and the shortcut, and writes the result.
    assert moved(ops, FORWARD) == (image + wide) + 2 * wide + 3 * wide + 2 * wide
    # Its gradient reads the gradient, the convolution's output and, for the sign, the shortcut; it writes the gradients
    # of both branches, which are then summed up.
    chain = next(op for op in ops if op.kind == "activation+norm")
    assert len([size for size in chain.reads.values() if size.image]) == 3
    assert len([size for size in chain.writes.values() if size.image]) == 2
    assert moved(ops, DATA) == 2 * 2 * wide + 5 * wide + 3 * wide
    assert flops(ops) == flops(block_ops("bf16"))


def test_norms_of_a_used_model_are_part_of_the_convolution():
    image, wide = 3 * 16 * 2, 8 * 16 * 2
    forward = [op for op in block_ops("bf16") if op.direction == FORWARD]
    ops = fused(forward, into=("conv",))
    assert [op.kind for op in ops] == ["conv", "conv+norm+add+activation", "conv"]
    assert moved(ops) == (image + wide) + 2 * wide + 2 * wide  # the shortcut is what the convolution reads


def test_what_others_read_is_written():
    """A norm before a convolution and a shortcut: its input stays, and so does its output."""

    class Pre(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
            self.prelu, self.conv = nn.PReLU(8), nn.Conv2d(8, 8, 1, bias=False)

        def forward(self, x):
            x = self.enter(x)
            return self.conv(self.prelu(self.norm(x))) + x

    with torch.device("meta"):
        ops = trace_module(Pre(), 4, "bf16")
    image, wide = 3 * 16 * 2, 8 * 16 * 2
    chained = fused(ops)
    assert moved(chained, FORWARD) == (image + wide) + 2 * wide + 2 * wide + 3 * wide
    # The slopes' gradient is as large as the input where the operator writes it, and is gone in one pass.
    assert moved(ops, DATA) == 2 * wide + (2 + 2) * wide + 3 * wide + 3 * wide
    # Gradient of the convolution, then one pass: gradient, the norm's input, that of the shortcut; the sum.
    assert moved(chained, DATA) == 2 * wide + 4 * wide


def test_layers_have_the_stage_that_they_are_of():
    for name, size in (("iresnet18", 112), ("resnet18", 64)):
        ops = trace(config_of(name, size), "bf16")
        assert list(dict.fromkeys(op.stage for op in ops if op.direction == FORWARD)) == [
            *("stem", "layer1", "layer2", "layer3", "layer4", "end")
        ]
        for stage in ("stem", "layer1", "layer4"):
            mine = [op for op in ops if op.stage == stage]
            assert flops(mine, FORWARD) == flops(mine, WEIGHTS), stage
        assert {op.stage for op in fused(ops)} == {op.stage for op in ops}


def test_a_norm_does_not_follow_another_in_one_pass():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
        ops = fused(trace_module(model, 4, "bf16"))
    assert [op.kind for op in ops if op.direction == FORWARD] == ["conv", "norm+activation", "norm"]
    assert [op.kind for op in ops if op.direction == DATA] == ["norm+activation", "norm"]
