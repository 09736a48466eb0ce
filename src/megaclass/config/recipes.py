"""Recipes: TOML files that hold only what differs from the defaults, and variants that differ from their file.

A file ``recipes/glint360k.toml`` is the recipe ``glint360k``. Its table ``[variants.r100]`` with sections of its own
(``[variants.r100.model]``) is the recipe ``glint360k_r100``: the file with these values put in, or, where it says
``like = "r50"``, that variant with these.
"""

import functools
import tomllib
from pathlib import Path
from typing import Any

from megaclass.config.reading import from_mapping
from megaclass.config.sections import Config
from megaclass.errors import UserError, lookup, near_match
from megaclass.files import open_regular

# The complete configuration with its comments has 12 kB; no line of it more than a few dots.
_MAX_BYTES = 1 << 18
_MAX_DOTS = 64
RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Of the embedded recipes: each file followed by its variants, in their order."""
    return list(_embedded())


def find_recipe(name: str) -> Path:
    """The file of an embedded recipe or of a path to a TOML file (a run's config.toml, say)."""
    return _located(name)[0]


def load_recipe(name: str, *, complete: bool = True, stored: bool = False) -> Config:
    """Read and check a recipe, every variant of its file included. UserError names the file and the key that is wrong.

    name: an embedded recipe, ``FILE.toml``, or ``FILE.toml:VARIANT``. complete, stored: as for
    :func:`~megaclass.config.reading.from_mapping`.
    """
    path, variant = _located(name)
    tree = _read(path)
    variants = tree.pop("variants", {})
    at = ""
    try:
        base = from_mapping({"recipe": path.stem} | tree, complete=complete and not variant, stored=stored)
        if variant and variant not in variants:
            raise UserError(f"no variant {variant!r}{near_match(variant, list(variants))}")
        found = {"": base}
        for at, changes in variants.items():
            like = lookup(found, str(changes.pop("like", "")), "variant")
            labels = {"recipe": f"{path.stem}_{at}"}
            found[at] = from_mapping(labels | changes, like, complete=complete and at == variant)
        return found[variant]
    except UserError as error:
        raise UserError(f"{path}{f' (variant {at})' if at else ''}: {error}") from None


def _located(name: str) -> tuple[Path, str]:
    """File and variant ("": none) of a recipe."""
    file, variant = name, ""
    if ".toml:" in name and not Path(name).is_file():
        file, _, variant = name.rpartition(":")
    if file.endswith(".toml"):
        if not Path(file).is_file():
            raise UserError(f"recipe file {file}: no such file")
        return Path(file), variant
    known = _embedded()
    if name not in known:
        raise UserError(
            f"no recipe {name!r}{near_match(name, list(known))}; `megaclass recipes` lists them, or give a .toml file"
        )
    return known[name]


@functools.cache
def _embedded() -> dict[str, tuple[Path, str]]:
    """Every embedded recipe with its file and its variant."""
    found = {}
    for path in sorted(RECIPES.glob("*.toml")):
        found[path.stem] = (path, "")
        found |= {f"{path.stem}_{variant}": (path, variant) for variant in _read(path).get("variants", {})}
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path, _MAX_BYTES, encoding="utf-8-sig", errors="surrogateescape") as file:
            text = file.read()
        # tomllib's memory grows with the square of the parts of a key: 98 kB of "a.a.a." took 9.7 GB.
        if any(line.count(".") > _MAX_DOTS and not line.lstrip().startswith("#") for line in text.splitlines()):
            raise ValueError(f"a line has more than {_MAX_DOTS} dots")
        tree = tomllib.loads(text)
    # 5,000 digits and 20,000 brackets are none of TOML's errors.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    variants = tree.get("variants", {})
    if not (isinstance(variants, dict) and all(isinstance(v, dict) for v in variants.values())):
        raise UserError(f"{path}: variants is a table of tables: write [variants.NAME] and its sections below")
    return tree
