"""Stand-ins for timm where it is not installed: one that works, and some that fail as it does."""

import sys
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor, nn

MODULE = "timm.models.vision_transformer"


class Block(nn.Module):
    """What ours uses of timm's block, under the same names; a sample's branch is never left out."""

    def __init__(self, dim, num_heads, qkv_bias, drop_path, act_layer, norm_layer) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.heads = num_heads
        self.norm1, self.norm2 = norm_layer(dim), norm_layer(dim)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(dim, 3 * dim, bias=qkv_bias), "proj": nn.Linear(dim, dim)}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})
        self.act = act_layer()

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](mixed)
        return x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.norm2(x))))


def available() -> bool:
    """Whether the real one can be imported, which takes a torchvision that fits torch."""
    try:
        __import__(MODULE)
    except Exception:
        return False
    return True


def install(monkeypatch) -> None:
    """Have ``from timm.models.vision_transformer import Block`` give the one above."""
    module = ModuleType(MODULE)
    module.Block = Block
    for name in ("timm", "timm.models", MODULE):
        monkeypatch.setitem(sys.modules, name, module)


def forget(monkeypatch) -> None:
    """Have importing it fail, as where it is not installed."""
    monkeypatch.setitem(sys.modules, MODULE, None)
