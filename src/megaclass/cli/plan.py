"""``megaclass plan``: what a recipe will need of devices, and how long it will take, without one."""

from pathlib import Path
from typing import Any

from megaclass.cli.common import whole_file
from megaclass.cli.parsing import configured, make_parser
from megaclass.config import load_recipe
from megaclass.errors import UserError


def plan(words: list[str]) -> int:
    parser = make_parser(
        "megaclass plan RECIPE [--devices N] [--device KIND] [--nodes N] [--from ROWS] [--section.key VALUE ...]",
        "Memory of a device by part, bytes on the wire, images that storage must deliver, time, checkpoints, and what "
        "fits. It needs no GPU. Exit status 1: the recipe does not fit.",
        {"recipe": "name of a recipe or a .toml file"},
        {
            "devices": (1, "on all nodes together"),
            "nodes": (1, "that hold the devices, as many each"),
            "device": ("cpu", "kind of device: see the list that a wrong name gives"),
            "from": ("", "rows of `bench train`, measured on such a device (.jsonl), to tell the time by"),
            "classes": ("0", "of the data, where the recipe does not say; with K, M or B"),
            "samples": (0, "images of an epoch, where the recipe does not say"),
            "picture": ("", "draw memory by part into this file (.png, .svg)"),
            "json": (False, "print everything as JSON instead"),
        },
    )
    config, options = configured(
        parser, words, lambda options, _: load_recipe(options.recipe, complete=False)
    )
    given = vars(options)
    for name in ("devices", "nodes"):
        if given[name] < 1:
            raise UserError(f"--{name}: {given[name]} is below 1")
    if options.devices % options.nodes:
        raise UserError(
            f"--nodes: {options.devices} devices are not the same number on each of {options.nodes}"
        )

    from megaclass.bench.flags import counts
    from megaclass.plan.whole import Known, whole_plan

    node_ranks = options.devices // options.nodes
    data = Known(counts(options.classes)[0], options.samples)
    fit = None
    if given["from"]:
        from megaclass.bench.train import fit_of
        from megaclass.results.rows import read_rows

        fit = fit_of(read_rows(given["from"]), given["from"])
    found = whole_plan(config, options.device, options.devices, node_ranks, data, fit)
    if options.json:
        import json

        print(json.dumps(found.as_dict(), indent=2))
    else:
        _show(found)
    if options.picture:
        with whole_file("--picture", Path(options.picture)) as file:
            _draw(found, file, Path(options.picture).suffix[1:])
    return 0 if found.fits else 1


def _show(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(found.title, style="bold", markup=False)
    table = Table("memory of a device", "", "", box=None, show_header=True, padding=(0, 1, 0, 0))
    table.columns[1].justify = "right"
    for part, size, what in found.memory_lines():
        table.add_row(part, size, what)
    console.print(table)
    for what, text in found.lines():
        console.print(f"{what:14} {text}", markup=False)


def _draw(found: Any, file: Path, kind: str) -> None:
    """Memory by part, against that of the device."""
    from matplotlib.figure import Figure

    parts = {name: size / 1e9 for name, size in vars(found.memory).items() if size}
    figure = Figure(figsize=(7, 0.3 * len(parts) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        [*parts], [*parts.values()], left=[sum([*parts.values()][:place]) for place in range(len(parts))]
    )
    axes.axvline(found.room / 1e9, linestyle=":", color="grey")
    axes.invert_yaxis()
    axes.set_xlabel(f"GB, of {found.room / 1e9:.3g} (dotted)")
    axes.set_title(found.title, fontsize=8, wrap=True)
    figure.savefig(file, format=kind or "png")
