"""``megaclass export``: checkpoints for other programs."""

from megaclass.cli.common import read_options, tell
from megaclass.errors import lookup


def export(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass export arcface_torch SOURCE OUTPUT [OPTIONS]",
        "Write a run, or checkpoints of arcface_torch, as the checkpoint_gpu_RANK.pt files from which arcface_torch's "
        "training script resumes.",
        {
            "format": "arcface_torch",
            "source": "run directory, or directory of checkpoint_gpu_RANK.pt files",
            "output": "directory for the files; must not hold any",
        },
        {
            "ranks": (0, "processes that will read them; 0: as many as wrote the source"),
            "layout": ("arcface_torch", "dropin: for the script with our head in it"),
            "checkpoint": ("latest", "of a run: best, latest or a step-NNNNNNNN"),
        },
    )

    from megaclass.checkpoint.arcface_torch import LAYOUTS
    from megaclass.inference.export import to_rank_files

    lookup({"arcface_torch": None}, options.format, "format")
    lookup(dict.fromkeys(LAYOUTS), options.layout, "layout")
    paths = to_rank_files(
        options.source, options.output, ranks=options.ranks, layout=options.layout, which=options.checkpoint
    )
    tell(f"wrote {paths[0]}" + (f" and those of {len(paths) - 1} more ranks" if len(paths) > 1 else ""))
