"""The small network: image sizes, precision, and that it learns."""

import pytest
import torch
import torch.nn.functional as F

from megaclass.models.convnet import ConvNet


@pytest.mark.parametrize("image_size", [28, 32, 48, 64])
def test_shapes(image_size):
    backbone = ConvNet(embedding_dim=16, width=8, image_size=image_size, dropout=0.1)
    assert backbone(torch.randn(2, 3, image_size, image_size)).shape == (2, 16)
    assert (backbone.embedding_dim, backbone.image_size) == (16, image_size)


def test_learns_in_bf16_and_channels_last():
    torch.manual_seed(0)
    backbone = ConvNet(embedding_dim=16, width=8, image_size=32).to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(8)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.1, momentum=0.9)
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeddings = backbone(images)
        assert embeddings.dtype == torch.float32
        loss = F.cross_entropy(embeddings, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
