"""Backbones of timm (https://github.com/huggingface/pytorch-image-models), as ``timm/NAME``; nothing is downloaded."""

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from megaclass.errors import UserError, extra, first_line, near_match, out_of_memory
from megaclass.models.layers import full_precision

PREFIX = "timm/"


class TimmBackbone(nn.Module):
    """images (B, 3, H, W) -> embeddings (B, embedding_dim), not normalised, fp32 also under autocast.

    The features of ``timm.create_model(name, num_classes=0)``, then a linear layer and a norm as at IResNet's end; with
    an ``embedding_dim`` of 0 the features themselves. ``dropout``, ``drop_path``: timm's ``drop_rate`` and
    ``drop_path_rate``. ``image_size``: of some models the only one that they take. UserError without timm, for a name
    that it does not know, and for options that the model does not take.
    """

    def __init__(
        self,
        name: str,
        *,
        embedding_dim: int = 512,
        image_size: int = 224,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        timm = extra("timm", "timm")
        if not timm.is_model(name):  # nor an address, from which it would fetch
            hint = near_match(PREFIX + name, [PREFIX + known for known in timm.list_models()])
            raise UserError(f"model.name: timm has no model {name!r}{hint}; timm.list_models() lists them")
        given = {"drop_rate": dropout or None, "drop_path_rate": drop_path or None}
        try:
            config = timm.get_pretrained_cfg(name)
            self.takes_any_size = not (config and config.fixed_input_size)
            size = None if self.takes_any_size else image_size
            self.body = timm.create_model(name, pretrained=False, num_classes=0, img_size=size, **given)
        except Exception as error:  # of any kind, for what does not go with this model
            if out_of_memory(error):
                raise
            raise UserError(f"model.name: timm refuses {name!r} as it is set: {first_line(error)}") from None
        self.image_size, self.about = image_size, self.body.pretrained_cfg
        features = int(getattr(self.body, "head_hidden_size", None) or self.body.num_features)
        self.embedding_dim = embedding_dim or features
        self.neck = nn.Sequential()
        if embedding_dim:
            self.neck.extend([nn.Linear(features, embedding_dim), nn.BatchNorm1d(embedding_dim)])
            self.neck[1].weight.requires_grad = False

    def require_size(self, size: int, key: str) -> None:
        """UserError, which names the setting, where images of so many pixels do not go through."""
        trained = self.body.training
        try:
            with torch.no_grad():
                self.body.eval()(torch.zeros(1, 3, size, size, device=next(self.body.parameters()).device))
        except Exception as error:  # of any kind: each model has its own words
            if out_of_memory(error):
                raise
            raise UserError(f"{key}: timm's model takes no images of {size} pixels: {first_line(error)}") from None
        self.body.train(trained)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features = self.body(images_BCHW).to(next(self.parameters()).dtype)
        with full_precision(features.device):
            return self.neck(features)

    def parted(self, given: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A state dict of timm as one of ours, and what it holds of the classifier; one of ours as it is. timm brings
        old names up to date, and positions to this size of images: UserError if it cannot."""
        if not given.keys().isdisjoint(self.state_dict()):  # TResNet too has a body
            return dict(given), {}
        update = getattr(sys.modules[type(self.body).__module__], "checkpoint_filter_fn", None)
        try:
            given = update(given, self.body) if update else given
        except Exception as error:
            raise UserError(f"{where}: no weights of this model ({first_line(error)}); name its own") from None
        behind = self.about["classifier"] or ()  # a name, or several, of which the first is the usual one
        behind = (behind,) if isinstance(behind, str) else behind
        ours = {key: tensor for key, tensor in self.state_dict().items() if key.startswith("neck.")}
        layers = {key: key.rpartition(".")[0] for key in given}
        ours |= {f"body.{key}": given[key] for key, layer in layers.items() if layer not in behind}
        return ours, {key.rpartition(".")[2]: given[key] for key, at in layers.items() if at in behind[:1]}
