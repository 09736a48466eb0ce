"""The network that an export holds, and what its file says of itself.

Shapes: B = images of a batch, H, W = their height and width, D = embedding columns, C = classes.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaclass import __version__
from megaclass.errors import UserError
from megaclass.heads.linear import LinearHead
from megaclass.inference.embedding import metadata as embedding_metadata
from megaclass.inference.model import Model
from megaclass.inference.runtimes import RuntimeBackbone
from megaclass.results.machine import snapshot


class Network(nn.Module):
    """images -> ``features`` (B, D), ``embeddings``, which are these with length 1, or ``logits`` (B, C), fp32.

    Images are normalised, fp32 (B, 3, H, W); with ``preprocess`` they are uint8 (B, H, W, 3), RGB, of the size that the
    model takes. result: ``auto`` is the logits of a linear head, and features of a model without one. Nothing random is
    left: dropout and skipped branches are those of training.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: Model, result: str = "auto", preprocess: bool = False) -> None:
        super().__init__()
        if isinstance(model.backbone, RuntimeBackbone):
            raise UserError(f"SOURCE: {model.source} is an export already; name the run that it came from")
        linear = isinstance(model.head, LinearHead)
        if result == "logits" and not linear:
            raise UserError(f"--result: {model.source} has no linear head; ask for embeddings or features")
        self.result = ("logits" if linear else "features") if result == "auto" else result
        self.backbone, self.preprocess = model.backbone, preprocess
        self.head = model.head if self.result == "logits" else None
        for name, values in (("mean", model.preprocessing.mean), ("std", model.preprocessing.std)):
            self.register_buffer(f"{name}_C11", torch.tensor(values).view(3, 1, 1) * 255)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if self.preprocess:
            images = (images.permute(0, 3, 1, 2).float() - self.mean_C11) / self.std_C11
        return self.result_of(images)

    def result_of(self, images_BCHW: Tensor) -> Tensor:
        """Of images that are normalised."""
        features_BD: Tensor = self.backbone(images_BCHW).float()
        if self.head is not None:
            logits_BC: Tensor = self.head.logits(features_BD)
            return logits_BC
        return F.normalize(features_BD) if self.result == "embeddings" else features_BD

    def example(self, model: Model) -> Tensor:
        """Input of two images, for tracing: one alone would be taken for the only number there is."""
        height, width = model.preprocessing.height, model.preprocessing.width
        if self.preprocess:
            return torch.zeros(2, height, width, 3, dtype=torch.uint8)
        return torch.zeros(2, 3, height, width)


def trace(network: Network, example: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph that takes any number of images."""
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def metadata(model: Model, network: Network, licence: str) -> dict[str, Any]:
    """What is stored in the file: the model's :class:`About`, as what it is now, and how the file is to be fed."""
    about, classifies = model.about, network.result == "logits"
    changes: dict[str, Any] = {"licence": licence or about.licence}
    if not classifies:  # no names of the identities that it was trained on travel along
        kept = about.evaluation if about.kind == "identity" else {}
        changes |= {"kind": "identity", "classes": None, "num_classes": 0, "evaluation": kept}
    identity = embedding_metadata(model)
    about = dataclasses.replace(about, fingerprint="" if classifies else identity["fingerprint"], **changes)
    return dataclasses.asdict(about) | {
        "model": identity["model"],
        "threshold": about.threshold,
        "thresholds": about.thresholds,
        "normalised": network.result == "embeddings",
        "preprocess_inside": network.preprocess,
        "megaclass": __version__,
        "revision": snapshot().get("revision"),
    }


def insightface(model: Model, network: Network, size_mb: float, int8: bool) -> dict[str, str]:
    """Why InsightFace's loader (python-package, model_zoo) and its MFR challenge (iccv21-mfr, track cfat) would not
    take the .onnx file; empty where they do. The time that MFR allows a model is not measured."""
    p = model.preprocessing
    square, side = p.height == p.width, p.height
    loader = {
        "its images are no square, from 112 pixels in steps of 16": not square or side < 112 or side % 16,
        "192 pixels, which it takes for landmarks": square and side == 192,
        "preprocessing inside; it feeds normalised NCHW": network.preprocess,
        "not normalised to [-1, 1]": p.mean != (0.5,) * 3 or p.std != (0.5,) * 3,
        "logits; it takes embeddings": network.result == "logits",
    }
    mfr = loader | {
        "not 112 pixels": side != 112,
        "more than 512 columns": model.embedding_dim > 512,
        "more than 1024 MB": size_mb > 1024,
        "weights must be of 32 bits": int8,
    }
    return {
        name: next((reason for reason, so in reasons.items() if so), "")
        for name, reasons in (("loader", loader), ("mfr", mfr))
    }
