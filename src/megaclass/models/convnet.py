"""A small plain network for characters and other small images, fast on CPUs. The default of the demo.

Simonyan and Zisserman 2015, "Very Deep Convolutional Networks" (3x3 convolutions), with strides in place of
pooling and batch norm, and IResNet's end, which keeps the position of every feature.

Shapes: B = samples, C = channels, H and W = rows and columns of an image or feature map, D = embedding_dim.
"""

import math

from torch import Tensor, nn

from megaclass.models.layers import full_precision


class ConvNet(nn.Module):
    """images_BCHW (three channels, ``image_size`` square) -> embeddings_BD, not normalised.

    Six 3x3 convolutions with ``width``, 2 ``width`` and 4 ``width`` channels, every other one with a stride
    of 2. ``dropout``: before the last linear layer. Embeddings have the parameters' precision also under
    autocast. The scale of the last norm is fixed at 1, as in IResNet.
    """

    def __init__(
        self, *, embedding_dim: int = 256, dropout: float = 0.0, image_size: int = 48, width: int = 32
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        layers: list[nn.Module] = []
        channels = 3
        for wider in (width, 2 * width, 4 * width):
            layers += [*_conv_norm_relu(channels, wider, stride=2), *_conv_norm_relu(wider, wider, stride=1)]
            channels = wider
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout, inplace=True)
        self.fc = nn.Linear(channels * math.ceil(image_size / 8) ** 2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.dropout(self.layers(images_BCHW).flatten(1))
        with full_precision(x.device):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
