"""What ``megaclass data info`` and ``check`` found, as tables for the console."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def info_table(found: Mapping[str, Any]) -> Table:
    """The table of a ``SetInfo.row()``."""
    table = _table(found["path"])
    table.add_row("kind", found["kind"])
    table.add_row("images", f"{found['images']:,}")
    table.add_row("classes", f"{found['classes']:,}")
    table.add_row("class names", found["class_names"] or "none")
    if found["index"]:
        table.add_row("index", found["index"])
    table.add_row("bytes", f"{found['total_bytes'] / 1e6:,.1f} MB")
    spread = found["images_per_class"]
    table.add_row(
        "images a class",
        f"{spread['min']:,} to {spread['max']:,}, mean {spread['mean']:,.1f}, median {spread['median']:,.0f}",
    )
    if found["classes_without_images"]:
        text = f"{found['classes_without_images']:,}: labels do not cover 0..{found['classes'] - 1:,}"
        table.add_row("classes without images", text)
    else:
        table.add_row("labels", f"0..{found['classes'] - 1:,}, every class has images")
    table.add_row("classes with one image", f"{found['classes_with_one_image']:,}")
    sampled = ", drawn at random" if found["looked_at"] < found["images"] else ""
    table.add_row("headers read", f"{found['looked_at']:,} of {found['images']:,}{sampled}")
    if found["formats"]:
        table.add_row("formats", ", ".join(f"{name} {n:,}" for name, n in found["formats"].items()))
        height, width, encoded = found["height"], found["width"], found["encoded_bytes"]
        table.add_row("mean size", f"{width['mean']:,.0f} x {height['mean']:,.0f} pixels (width x height)")
        table.add_row("sizes", _sizes(found))
        table.add_row(
            "encoded",
            f"mean {encoded['mean'] / 1e3:,.1f} kB, {encoded['min'] / 1e3:,.1f} to {encoded['max'] / 1e3:,.1f}",
        )
    if found["damaged"]:
        table.add_row("damaged", f"{found['damaged']:,}; `megaclass data check` lists them")
    return table


def check_table(
    path: str, counts: Mapping[str, int], kinds: Mapping[str, str], images: int, decoded: int
) -> Table:
    """How many findings of each of the ``kinds`` (name -> what it means) there are."""
    table = Table(title=path, title_justify="left", title_style="bold", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("images", f"{images:,}")
    table.add_row("of these decoded", f"{decoded:,}")
    for kind, text in kinds.items():
        if counts.get(kind):
            table.add_row(text, f"{counts[kind]:,}", style="bold red")
    table.add_row("result", "something was found" if any(counts.values()) else "sound")
    return table


def _sizes(found: Mapping[str, Any]) -> str:
    looked_at = max(1, found["looked_at"] - found["damaged"])
    common = [
        f"{width} x {height} ({count / looked_at:.0%})" for height, width, count in found["common_sizes"]
    ]
    if len(common) == 1:
        return "all " + common[0].partition(" (")[0]
    widths, heights = found["width"], found["height"]
    text = f"{widths['min']} x {heights['min']} to {widths['max']} x {heights['max']}"
    return f"{text}; commonest {', '.join(common)}"


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column()
    table.add_column()
    return table
