"""``megaclass plan``: what a recipe will need of devices, and how long it will take, without one."""

from pathlib import Path
from typing import Any

from megaclass.cli.parsing import configured, make_parser, new_file_if_any
from megaclass.config import load_recipe
from megaclass.errors import UserError
from megaclass.files import whole_file


def plan(words: list[str]) -> int:
    from megaclass.bench.flags import count

    parser = make_parser(
        "megaclass plan RECIPE [--devices N] [--device KIND] [--nodes N] [--from ROWS] [--section.key VALUE ...]",
        "Memory of a device by part, bytes on the wire, images that storage must deliver, time, checkpoints, and what "
        "fits. It needs no GPU. Exit status 1: the recipe does not fit.",
        {"recipe": "name of a recipe or a .toml file"},
        {
            "devices": (1, "of each node"),
            "nodes": (1, "how many"),
            "device": ("cpu", "kind of device: h100, a100, v100, ..; a wrong name lists them"),
            "from": ("", "rows of `bench train`, measured on one such device (.jsonl), to tell the time by"),
            "classes": (count, "of the data, where the recipe does not say; with K, M or B"),
            "samples": (count, "images of an epoch, where the recipe does not say"),
            "picture": ("", "draw memory by part into this file (.png, .svg)"),
        },
    )
    config, options = configured(parser, words, lambda options, _: load_recipe(options.recipe, complete=False))
    rows, devices, nodes = vars(options)["from"], options.devices, options.nodes
    for name in ("devices", "nodes", "classes", "samples"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name}: {value} is below 1")
    picture = new_file_if_any(options.picture, "--picture", (".png", ".svg"))

    from megaclass.bench.train import fit_of
    from megaclass.plan.devices import Device
    from megaclass.plan.memory import Job
    from megaclass.plan.whole import Plan
    from megaclass.results.rows import read_rows

    data, device = config.data, Device.named(options.device, devices)
    compute, classes = device.resolved(config.precision.compute), options.classes or data.num_classes
    job = Job(config, compute, classes, devices * nodes, devices, device.kind)
    samples = options.samples or (data.num_samples if data.source == "synthetic" else 0)
    fit = fit_of(read_rows(rows), rows, device.kind, compute) if rows else None
    found = Plan.of(job, device, samples, fit)
    _show(found)
    if picture:
        with whole_file("--picture", picture) as file:
            _draw(found, file, picture.suffix[1:])
    return 0 if found.fits else 1


def _show(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(found.title), title_justify="left", title_style="bold", box=None, show_header=False)
    for cells in found.lines():
        table.add_row(*map(Text, cells))
    Console(highlight=False).print(table)


def _draw(found: Any, file: Path, kind: str) -> None:
    """Memory by part, against that of the device."""
    from matplotlib.figure import Figure

    parts = {name: size / 1e9 for name, size in vars(found.memory).items() if size}
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
    axes.barh([*parts], [*parts.values()])
    axes.set(xlabel=f"GB; {found.memory.total / 1e9:.3g} in all, of {found.room / 1e9:.3g}", title=found.title)
    axes.title.set(fontsize=8, wrap=True)
    figure.savefig(file, format=kind)
