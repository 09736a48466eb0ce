"""Margins: what happens to the logit of the true class. One file each, and a line in ``MARGINS``."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from megaclass.errors import UserError, lookup, near_match
from megaclass.heads.margins.adaface import AdaFace
from megaclass.heads.margins.base import MAX_SCALE, BaseMargin, RunningMargin, Samples, Target, static_shift
from megaclass.heads.margins.combined import ArcFace, CosFace, Margin, SphereFace
from megaclass.heads.margins.curricular import CurricularFace
from megaclass.heads.margins.elastic import ElasticArcFace, ElasticCosFace
from megaclass.heads.margins.magface import MagFace
from megaclass.heads.margins.per_class import ClassMargin, FrequencyMargin, PopulationMargin

__all__ = ["MAX_SCALE", "BaseMargin", "Margin", "RunningMargin", "Samples", "Target", "static_shift"]

# What ``head.margin`` chooses from.
MARGINS: dict[str, Callable[..., BaseMargin]] = {
    "combined": Margin,
    "arcface": ArcFace,
    "cosface": CosFace,
    "sphereface": SphereFace,
    "adaface": AdaFace,
    "curricularface": CurricularFace,
    "elastic_arcface": ElasticArcFace,
    "elastic_cosface": ElasticCosFace,
    "magface": MagFace,
    "frequency": FrequencyMargin,
    "population": PopulationMargin,
    "per_class": ClassMargin,
}


def build_margin(name: str, options: str, numbers: Callable[[], Tensor], **settings: Any) -> BaseMargin:
    """The margin of this name, with ``options`` of its own as a text, such as "m=0.4, h=0.333", and other settings.

    numbers: gives one of classes its own. UserError names ``head.margin`` or ``head.margin_options``.
    """
    make = lookup(MARGINS, name, "head.margin")
    parameters = inspect.signature(make).parameters
    if "numbers_C" in parameters:
        settings["numbers_C"] = numbers()
    known = [key for key, of in parameters.items() if of.annotation is float]
    known = [key for key in known if key not in {**settings, "scale": 0, "filter_threshold": 0}]
    for part in filter(None, map(str.strip, options.split(","))):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in known:
            raise UserError(
                f"head.margin_options: {name} has no {key!r}{near_match(key, known)}; "
                f"it has {', '.join(known) or 'none'}"
            )
        if key in settings:
            raise UserError(f"head.margin_options: {key} is given twice; leave one out")
        try:
            settings[key] = float(value)
            if not abs(settings[key]) <= 1e6:  # its square stays finite
                raise ValueError
        except ValueError:
            raise UserError(f"head.margin_options: {part!r} is not a name, '=' and a number to 1e6") from None
    try:
        return make(**settings)
    except ValueError as error:
        told = re.sub("^m[123] ", "margin ", str(error)) if "margin" in known else error
        raise UserError(f"head.margin_options: {name}: {told}") from None
