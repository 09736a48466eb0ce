"""Tables and pictures from the files that runs leave behind: no torch, no GPU.

What commands ask of reports; each is imported when it is first asked for, so that other commands start quickly.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "console_tables": "tables.console_tables",
    "comparisons": "compared.comparisons",
    "plan_tables": "console.plan_tables",
    "require_room": "page.require_room",
    "write_page": "page.write_page",
    "draw_seeds": "curves.draw_seeds",
    "check_nvidia_report": "nvidia.check_report",
    "write_nvidia_report": "nvidia.write_report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _HOMES[name].split(".")
    return getattr(import_module(f"{__name__}.{module}"), function)
