"""Parts of the reference that are made from the code when the site is built.

A page asks for one by a line of its own: ``<!-- configuration -->`` for the tables of all settings, and
``<!-- with settings -->`` above a table whose first column names recipes, which gets columns of what they set.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from megaclass.config import SECTIONS, load_recipe, scaled_lr

CONFIGURATION = "<!-- configuration -->"
WITH_SETTINGS = "<!-- with settings -->"
COLUMNS = (
    "backbone",
    "classes",
    "sampled",
    "global batch",
    "learning rate",
    "epochs",
    "warm-up",
    "weight decay",
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls for every page."""
    if CONFIGURATION in markdown:
        markdown = markdown.replace(CONFIGURATION, configuration())
    while WITH_SETTINGS in markdown:
        before, _mark, after = markdown.partition(WITH_SETTINGS + "\n")
        table, blank, rest = after.partition("\n\n")
        markdown = before + with_settings(table) + blank + rest
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Roles of docstrings (``:func:`name```), which Markdown does not know, become plain code."""
    return re.sub(r":(?:func|class|mod|meth|attr):(?=<code|<span)", "", html)


# -- every setting ----------------------------------------------------------------------------------------


def configuration() -> str:
    """A heading and a table for each section of a configuration, from its dataclass."""
    return "\n\n".join(section_table(name, section) for name, section in SECTIONS.items())


def section_table(name: str, section: type) -> str:
    rows = [
        f"| `{name}.{field.name}` | {default(field)} | {meaning(field)} |"
        for field in dataclasses.fields(section)
    ]
    first_line = (section.__doc__ or "").strip().splitlines()[0]
    return "\n".join(
        [f"## {name}", "", first_line, "", "| setting | default | meaning |", "|---|---|---|", *rows]
    )


def default(field: dataclasses.Field) -> str:
    value = field.default_factory() if callable(field.default_factory) else field.default
    text = str(value).lower() if isinstance(value, bool) else f"{value}"
    return f"`{text}`" if text else "empty"


def meaning(field: dataclasses.Field) -> str:
    """The documentation of a field, with what is allowed."""
    known = field.metadata
    limits = [str(choice) for choice in known.get("choices", ())]
    low, high = known.get("low"), known.get("high")
    if limits:
        allowed = ": " + ", ".join(f"`{choice}`" for choice in limits)
    elif low is not None or high is not None:
        bounds = [
            f"at least {low:g}" if low is not None else "",
            f"at most {high:g}" if high is not None else "",
        ]
        allowed = " (" + ", ".join(filter(None, bounds)) + ")"
    else:
        allowed = ""
    return known.get("doc", "").replace("|", "\\|").replace("<", "&lt;") + allowed


def where(only: Any, of_section: Any) -> str:
    """The settings with which it exists; of a field that says nothing, those of its section."""
    conditions = []
    for key, values in (of_section if only is None else only).items():
        allowed = " or ".join(f"`{value}`" if value != "" else "empty" for value in values) or "set"
        conditions.append(f"`{key}` {allowed}")
    return f"; only with {' and '.join(conditions)}" if conditions else ""


# -- what recipes set -------------------------------------------------------------------------------------


def with_settings(table: str) -> str:
    """The table with columns behind its first, filled from the recipe that a line begins with."""
    head, rule, *lines = table.splitlines()
    return "\n".join(
        [
            inserted(head, COLUMNS),
            inserted(rule, ["---"] * len(COLUMNS)),
            *(inserted(line, settings(re.search(r"`(\w+)`", line)[1])) for line in lines),
        ]
    )


def inserted(line: str, cells: Any) -> str:
    _, first, rest = line.split("|", 2)
    return f"|{first}| " + " | ".join(cells) + f" |{rest}"


def settings(name: str) -> list[str]:
    config = load_recipe(name)
    plan, head = config.schedule, config.head
    length = f"{plan.epochs:g}" if not plan.samples else f"{plan.samples:,} images"
    return [
        config.model.name,
        f"{config.data.num_classes:,}" if config.data.num_classes else "",
        f"{getattr(head, 'sample_rate', 1.0):.3g}",
        f"{config.data.global_batch_size:,}",
        f"{scaled_lr(config):.3g}",
        length,
        f"{plan.warmup_epochs:g}",
        f"{config.optim.weight_decay:.3g}",
    ]
