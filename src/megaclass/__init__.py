"""Train image recognition models from a thousand to a hundred million classes.

The names below are loaded when first used, so that ``import megaclass`` costs milliseconds and no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0.dev0"

_PUBLIC = {
    "AdaFace": "megaclass.heads.margins",
    "ArcFace": "megaclass.heads.margins",
    "ClassMargin": "megaclass.heads.margins",
    "CosFace": "megaclass.heads.margins",
    "CurricularFace": "megaclass.heads.margins",
    "ElasticArcFace": "megaclass.heads.margins",
    "ElasticCosFace": "megaclass.heads.margins",
    "FrequencyMargin": "megaclass.heads.margins",
    "MagFace": "megaclass.heads.margins",
    "Margin": "megaclass.heads.margins",
    "PopulationMargin": "megaclass.heads.margins",
    "SphereFace": "megaclass.heads.margins",
    "PartialFC": "megaclass.heads.partial_fc",
    "HeadSGD": "megaclass.heads.sgd",
    "Gallery": "megaclass.gallery.gallery",
    "LinearHead": "megaclass.heads.linear",
    "RecordDataset": "megaclass.data.records.reader",
    "RecordWriter": "megaclass.data.records.writer",
    "UserError": "megaclass.errors",
    "build_backbone": "megaclass.models.registry",
    "load": "megaclass.inference.load",
    "load_recipe": "megaclass.config",
    "evaluate": "megaclass.inference.evaluate",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'megaclass' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
