"""The configuration of a run: what can be set, what it means, what is allowed.

A recipe is a TOML file that holds only what differs from the defaults in :mod:`megaclass.config.sections`. Every
section is a frozen dataclass; every field carries its documentation and its limits, which the command line,
``megaclass show`` and the checks all read. Standard library only: importing this costs milliseconds.
"""

from megaclass.config.checks import absent, differences
from megaclass.config.reading import from_mapping, from_text, require_known
from megaclass.config.recipes import find_recipe, load_recipe, recipe_names
from megaclass.config.sections import SECTIONS, Config, Data, Model, Optim, Schedule, options, values
from megaclass.config.steps import Steps, scaled_lr, steps_of
from megaclass.config.text import documented, to_toml

__all__ = [
    "SECTIONS",
    "Config",
    "Data",
    "Model",
    "Optim",
    "Schedule",
    "Steps",
    "absent",
    "differences",
    "documented",
    "find_recipe",
    "from_mapping",
    "from_text",
    "load_recipe",
    "options",
    "recipe_names",
    "require_known",
    "scaled_lr",
    "steps_of",
    "to_toml",
    "values",
]
