"""IResNet, the residual network of identity recognition, with arcface_torch's parameter names.

Deng et al. 2019, "ArcFace" (section 3.1) after Han et al. 2017, "Deep Pyramidal Residual Networks": a 3x3
stem that keeps the resolution, blocks BN-conv-BN-PReLU-conv-BN with the stride in the second convolution and
no activation after the sum, and BN-dropout-linear-BN on all positions of the last feature map.

Shapes: B = samples, C = channels, H and W = rows and columns of an image or feature map, D = embedding_dim.
"""

import math
from collections.abc import Collection

from torch import Tensor, nn

from megaclass.models.layers import full_precision, residual_stages, shortcut
from megaclass.models.prelu import PReLU

# Depth -> blocks of the four stages. 18 to 100 and 200 as in InsightFace's recognition/arcface_torch, 180 and
# 300 as in its reconstruction/jmlr, which is the public record of the r180 and r300 of the WebFace reports.
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    180: (3, 20, 63, 3),
    200: (6, 26, 60, 6),
    300: (4, 46, 95, 4),
}


class IResNetBlock(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride), rounded up."""

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.prelu = PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        added = x if self.downsample is None else self.downsample(x)
        out = self.conv1(self.bn1(x))
        out = self.conv2(self.prelu(self.bn2(out)))
        return self.bn3(out) + added


class IResNet(nn.Module):
    """images_BCHW (three channels, ``image_size`` square) -> embeddings_BD, not normalised.

    ``blocks``: blocks of the four stages. ``width``: channels of the stem and the first stage; each further
    stage doubles them (64 is the published network). ``dropout``: before the last linear layer.
    ``checkpoint_activations``: keep one activation a block and compute the rest again in the backward pass, in the
    stages that ``checkpoint_stages`` names by their numbers from 1.

    The last linear layer and norm run in the parameters' own precision also under autocast, so embeddings are
    fp32 there. The scale of the last norm is fixed at 1, as in arcface_torch: the head normalises anyway.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        embedding_dim: int = 512,
        dropout: float = 0.0,
        image_size: int = 112,
        width: int = 64,
        checkpoint_activations: bool = False,
        checkpoint_stages: Collection[float] = (1, 2, 3, 4),
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = PReLU(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = residual_stages(
            IResNetBlock, width, blocks, 2, checkpoint_stages if checkpoint_activations else ()
        )
        self.bn2 = nn.BatchNorm2d(8 * width)
        self.dropout = nn.Dropout(dropout, inplace=True)
        self.fc = nn.Linear(8 * width * math.ceil(image_size / 16) ** 2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(images_BCHW)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(self.bn2(x).flatten(1))
        with full_precision(x.device):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))
