"""MobileFaceNet, the small backbone of identity recognition, with arcface_torch's parameter names.

Chen et al. 2018, "MobileFaceNets" (table 1): inverted residual blocks, and a depth-wise convolution over the
whole last feature map in place of a global average pool. Channel counts are arcface_torch's, not the paper's.

Shapes: B = samples, C = channels, H and W = rows and columns of an image or feature map, D = embedding_dim.
"""

import math

from torch import Tensor, nn

from megaclass.models.layers import full_precision
from megaclass.models.prelu import PReLU


class Layers(nn.Module):
    """Modules in sequence, under the name ``layers``; with ``residual`` the input is added."""

    def __init__(self, *modules: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    activate: bool = True,
) -> Layers:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    return Layers(conv, nn.BatchNorm2d(out_channels), *([PReLU(out_channels)] if activate else []))


def _inverted_residual(
    in_channels: int, out_channels: int, hidden: int, stride: int = 2, residual: bool = False
) -> Layers:
    """Expand to ``hidden`` channels, 3x3 depth-wise, project."""
    return Layers(
        _conv_norm(in_channels, hidden),
        _conv_norm(hidden, hidden, 3, stride, padding=1, groups=hidden),
        _conv_norm(hidden, out_channels, activate=False),
        residual=residual,
    )


def _residuals(channels: int, count: int, hidden: int) -> Layers:
    """``count`` blocks that keep the shape."""
    return Layers(*(_inverted_residual(channels, channels, hidden, 1, True) for _ in range(count)))


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
                _conv_norm(3, narrow, 3, stride=2, padding=1),
                _conv_norm(narrow, narrow, 3, padding=1, groups=64)
                if blocks[0] == 1
                else _residuals(narrow, blocks[0], 128),
                _inverted_residual(narrow, narrow, 128),
                _residuals(narrow, blocks[1], 128),
                _inverted_residual(narrow, wide, 256),
                _residuals(wide, blocks[2], 256),
                _inverted_residual(wide, wide, 512),
                _residuals(wide, blocks[3], 256),
            ]
        )
        self.conv_sep = _conv_norm(wide, 512)
        size = math.ceil(image_size / 16)
        self.features = Layers(
            _conv_norm(512, 512, size, groups=512, activate=False),  # one filter over the whole map
            nn.Flatten(),
            nn.Linear(512, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = images_BCHW
        for layer in self.layers:
            x = layer(x)
        with full_precision(x.device):
            return self.features(self.conv_sep(x.to(next(self.conv_sep.parameters()).dtype)))
