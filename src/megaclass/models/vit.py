"""Vision transformers of identity recognition, with arcface_torch's parameter names.

Dosovitskiy et al. 2021, arXiv:2010.11929, as An et al. 2022, arXiv:2203.15565, have them: patches of 9 pixels, ReLU6
in the MLPs, no bias of queries, keys and values, no class token. The embedding is made from all tokens.

Shapes: B = samples, H and W = rows and columns of an image, N = patches, K = patches that are kept, V = columns of a
token, D = embedding_dim.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaclass.errors import UserError
from megaclass.models.layers import Stage, full_precision, leave_out, leave_out_more_by_depth

# Name -> columns of a token, blocks.
SIZES = {"vit_t": (256, 12), "vit_s": (512, 12), "vit_b": (512, 24), "vit_l": (768, 24)}
PATCH = 9
_HEADS = 8


class Block(nn.Module):
    """(B, N, V) -> (B, N, V): attention among the tokens, and an MLP on each.

    ``drop_path``: in training each of the two is left out for this share of the samples.
    """

    drop_path = 0.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width, bias=False), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        x = x + leave_out(self.attn["proj"](mixed), self.drop_path, self.training)
        wide = F.relu6(self.mlp["fc1"](self.norm2(x)))
        return x + leave_out(self.mlp["fc2"](wide), self.drop_path, self.training)


class VisionTransformer(nn.Module):
    """images_BCHW (three channels, ``image_size`` square) -> embeddings_BD, not normalised.

    ``drop_path``: that of the last block; it rises evenly from 0 in the first. ``mask_ratio``: in training the blocks
    do not see this share of each sample's patches, and a learnt token stands for them afterwards.
    ``checkpoint_activations``: keep one activation a block and compute the rest again in the backward pass.

    Under autocast the blocks run in low precision, their sum and everything before and after them in the parameters'
    own; the original also takes the softmax of its attention in fp32. Pixels beyond the last whole patch are not seen.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        embedding_dim: int = 512,
        image_size: int = 112,
        drop_path: float = 0.0,
        mask_ratio: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        self.mask_ratio = mask_ratio
        patches = (image_size // PATCH) ** 2
        if not patches:
            raise UserError(f"data.image_size: {image_size} is less than a patch of {PATCH} pixels")
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, PATCH, stride=PATCH)))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, width))
        # Without masking it has no gradient, for which DistributedDataParallel would wait.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=mask_ratio > 0)
        self.blocks = Stage(*(Block(width) for _ in range(depth)), recompute=checkpoint_activations)
        leave_out_more_by_depth(self.blocks, drop_path)
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * patches, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=2e-5),
        )
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        masks = self.training and self.mask_ratio > 0
        with full_precision(images_BCHW.device):
            maps_BVHW = self.patch_embed(images_BCHW.to(self.pos_embed.dtype))
            tokens_BNV = maps_BVHW.flatten(2).transpose(1, 2) + self.pos_embed
        if masks:
            order_BN, tokens_BNV = self._leave_out(tokens_BNV)
        tokens_BNV = self.blocks(tokens_BNV)
        with full_precision(images_BCHW.device):
            tokens_BNV = self.norm(tokens_BNV.to(self.pos_embed.dtype))
            if masks:
                tokens_BNV = self._put_back(tokens_BNV, order_BN)
            return self.feature(tokens_BNV.flatten(1))

    def _leave_out(self, tokens_BNV: Tensor) -> tuple[Tensor, Tensor]:
        """A random order of each sample's patches, and the tokens of its first K (the rest is left out)."""
        batch, patches, width = tokens_BNV.shape
        order_BN = torch.rand(batch, patches, device=tokens_BNV.device).argsort(dim=1)
        kept_BK = order_BN[:, : max(1, int(patches * (1 - self.mask_ratio)))]
        return order_BN, tokens_BNV.gather(1, kept_BK.unsqueeze(-1).expand(-1, -1, width))

    def _put_back(self, tokens_BKV: Tensor, order_BN: Tensor) -> Tensor:
        """The tokens in the places of their patches, and the learnt one in the other places."""
        batch, kept, width = tokens_BKV.shape
        missing = self.mask_token.expand(batch, order_BN.shape[1] - kept, width)
        shuffled_BNV = torch.cat([tokens_BKV, missing.to(tokens_BKV.dtype)], dim=1)
        return shuffled_BNV.gather(1, order_BN.argsort(dim=1).unsqueeze(-1).expand(-1, -1, width))
