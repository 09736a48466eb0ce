"""MobileFaceNet, the small backbone of identity recognition, with arcface_torch's parameter names.

Chen et al. 2018, "MobileFaceNets" (table 1): inverted residual blocks, and a depth-wise convolution over the
whole last feature map in place of a global average pool. Channel counts are arcface_torch's, not the paper's.

Shapes: B = samples, C = channels, H and W = rows and columns of an image or feature map, D = embedding_dim.
"""

import math

from torch import Tensor, nn

from megaclass.models.layers import full_precision
from megaclass.models.prelu import PReLU


class ConvNorm(nn.Module):
    """Convolution, norm and, if ``activate``, PReLU. The parameter names hold the word ``layers``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        if activate:
            self.layers.append(PReLU(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class InvertedResidual(nn.Module):
    """Expand to ``hidden`` channels, 3x3 depth-wise, project; with ``residual`` the input is added."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            ConvNorm(in_channels, hidden),
            ConvNorm(hidden, hidden, 3, stride, padding=1, groups=hidden),
            ConvNorm(hidden, out_channels, activate=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Residuals(nn.Module):
    """``count`` inverted residual blocks that keep the shape."""

    def __init__(self, channels: int, count: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(InvertedResidual(channels, channels, hidden, 1, True) for _ in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class WholeMapEmbedding(nn.Module):
    """(B, C, size, size) -> (B, D): one depth-wise filter over the whole map, linear, norm."""

    def __init__(self, channels: int, size: int, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNorm(channels, channels, size, groups=channels, activate=False),
            nn.Flatten(),
            nn.Linear(channels, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class MobileFaceNet(nn.Module):
    """images_BCHW (three channels, ``image_size`` square) -> embeddings_BD, not normalised.

    ``blocks``: blocks at the four resolutions. ``scale``: channels are 64 and 128 times this. What follows
    the last block runs in the parameters' own precision also under autocast, so embeddings are fp32 there.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        scale: int,
        *,
        embedding_dim: int = 512,
        image_size: int = 112,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        narrow, wide = 64 * scale, 128 * scale
        self.layers = nn.ModuleList(
            [
                ConvNorm(3, narrow, 3, stride=2, padding=1),
                ConvNorm(narrow, narrow, 3, padding=1, groups=64)
                if blocks[0] == 1
                else Residuals(narrow, blocks[0], 128),
                InvertedResidual(narrow, narrow, 128, 2, False),
                Residuals(narrow, blocks[1], 128),
                InvertedResidual(narrow, wide, 256, 2, False),
                Residuals(wide, blocks[2], 256),
                InvertedResidual(wide, wide, 512, 2, False),
                Residuals(wide, blocks[3], 256),
            ]
        )
        self.conv_sep = ConvNorm(wide, 512)
        self.features = WholeMapEmbedding(512, math.ceil(image_size / 16), embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = images_BCHW
        for layer in self.layers:
            x = layer(x)
        with full_precision(x.device):
            return self.features(self.conv_sep(x.to(next(self.conv_sep.parameters()).dtype)))
