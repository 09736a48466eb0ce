"""The configuration of a case that trains or runs the model of a recipe."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megaclass.config import Config, Model, find_recipe, from_mapping, load_recipe
from megaclass.errors import lookup
from megaclass.models.registry import BACKBONES

# As a command line may call them, and as the rows do.
PRECISIONS = {
    "float32": "fp32",
    "tf32": "tf32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "bf16",
}
SYNTHETIC = "synthetic"  # as data: noise, made on the device or in memory


def recipe_digest(name: str) -> dict[str, str]:
    """What tells two versions of a recipe file apart, for a row; embedded recipes belong to the source revision."""
    if ".toml" not in name:
        return {}
    return {"recipe_digest": hashlib.sha256(find_recipe(name).read_bytes()).hexdigest()[:12]}


def recipe_of(name: str, backbone: str) -> Config:
    """The recipe, without its evaluation. Options of its backbone (width, stem, ..) are of no use to another, which
    gets its own defaults. UserError: a recipe or a backbone that there is not."""
    recipe = load_recipe(name)
    model = recipe.model
    if backbone and backbone != model.name:
        lookup(dict(BACKBONES), backbone, "backbone")
        model = Model(name=backbone, embedding_dim=model.embedding_dim)
    return replace(recipe, model=model, evaluate=replace(recipe.evaluate, task="none", path=""))


def with_settings(recipe: Config, given: dict[str, dict[str, Any]], settings: Mapping[str, Any]) -> Config:
    """The recipe with what a case says, by section, and then its further ``section.key`` values. UserError: a value
    that there is not."""
    for key, value in settings.items():
        section, _, name = key.partition(".")
        given.setdefault(section, {})[name] = value
    return from_mapping(given, recipe)
