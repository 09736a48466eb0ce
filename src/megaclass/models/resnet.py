"""ResNet v1.5 for image classification, with torchvision's parameter names up to the classifier.

He et al. 2016, "Deep Residual Learning for Image Recognition" (table 1); v1.5 has the stride in the 3x3
convolution of a bottleneck, not in its first 1x1. The backbone ends at the pooled features: the classifier is
a head. ``deep`` stem and ``pool`` shortcuts together are ResNet-D (He et al. 2019, "Bag of Tricks for Image
Classification with Convolutional Neural Networks", section 4), with the names of timm's resnet18d to resnet152d.

Shapes: B = samples, C = channels, H and W = rows and columns of an image or feature map, D = embedding_dim.
"""

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from megaclass.config.checks import check_alone
from megaclass.models.layers import leave_out, leave_out_more_by_depth, residual_stages, shortcut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: (B, C_in, H, W) -> (B, width, H / stride, W / stride), rounded up."""

    expansion = 1
    drop_path = 0.0

    def __init__(self, in_channels: int, width: int, stride: int, pool: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(in_channels, width, stride, pool)

    def forward(self, x: Tensor) -> Tensor:
        added = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = leave_out(self.bn2(self.conv2(out)), self.drop_path, self.training)
        return F.relu(out + added, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1: (B, C_in, H, W) -> (B, 4 width, H / stride, W / stride), rounded up."""

    expansion = 4
    drop_path = 0.0

    def __init__(self, in_channels: int, width: int, stride: int, pool: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(in_channels, 4 * width, stride, pool)

    def forward(self, x: Tensor) -> Tensor:
        added = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = leave_out(self.bn3(self.conv3(out)), self.drop_path, self.training)
        return F.relu(out + added, inplace=True)


# Depth -> block and blocks of the four stages.
DEPTHS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """images_BCHW (three channels) -> features_BD, averaged over all positions: any image size will do.

    ``image_size``: the size that it is meant for, a note to others. ``width``: channels of the stem (64 is
    the published network); D = 8 * width * block.expansion. ``stem``: ``imagenet`` (7x7 with stride 2,
    max-pool), ``deep`` (three 3x3, the first with stride 2, max-pool) or ``small`` (3x3 with stride 1, no pool: for
    images of 32 to 96 pixels). ``shortcut``: where it halves the resolution, by a ``stride`` of its 1x1 convolution or
    by the mean of 2x2 pixels before it (``pool``).
    ``dropout``: of the features. ``drop_path``: share of the samples that skip the last block's branch in training; it
    rises evenly from 0 in the first.
    ``zero_init_residual``: every block starts as its shortcut (Goyal et al. 2017, section 5.1), as in the
    NVIDIA recipe.
    ``checkpoint_activations``: keep one activation a block and compute the rest again in the backward pass, in the
    stages that ``checkpoint_stages`` names by their numbers from 1.

    Features have the parameters' precision also under autocast.
    """

    takes_any_size = True

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: tuple[int, int, int, int],
        *,
        image_size: int = 224,
        width: int = 64,
        stem: str = "imagenet",
        shortcut: str = "stride",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        zero_init_residual: bool = True,
        checkpoint_activations: bool = False,
        checkpoint_stages: Collection[float] = (1, 2, 3, 4),
    ) -> None:
        super().__init__()
        check_alone("model.stem", stem)
        check_alone("model.shortcut", shortcut)
        self.embedding_dim = 8 * width * block.expansion
        self.image_size = image_size
        self.stem = stem
        self.dropout = dropout
        self.conv1 = _stem(stem, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = residual_stages(
            block,
            width,
            blocks,
            1,
            checkpoint_stages if checkpoint_activations else (),
            pool=shortcut == "pool",
        )
        leave_out_more_by_depth([*self.layer1, *self.layer2, *self.layer3, *self.layer4], drop_path)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                last_norm = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last_norm.weight)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images_BCHW)), inplace=True)
        if self.stem != "small":
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return F.dropout(x.mean((2, 3), dtype=self.bn1.weight.dtype), self.dropout, self.training)


def _stem(kind: str, width: int) -> nn.Module:
    """The convolutions before the first norm."""
    if kind != "deep":
        kernel, stride = (7, 2) if kind == "imagenet" else (3, 1)
        return nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
    half = width // 2
    parts: list[nn.Module] = []
    for channels, stride in ((3, 2), (half, 1)):
        parts += [
            nn.Conv2d(channels, half, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*parts, nn.Conv2d(half, width, 3, padding=1, bias=False))
