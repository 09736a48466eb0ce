"""``megaclass bench loader``: images to batches."""

from typing import Any

from megaclass.cli.bench.sweep import options_of_sweep, show
from megaclass.cli.parsing import make_parser, parse


def loader(words: list[str]) -> None:
    parser = make_parser(
        "megaclass bench loader [--workload faces,imagenet] [--data PATH] [--output FILE.jsonl] [...]",
        "Measure loaders from files to uint8 batches, on CUDA to batches on the device: images a second and a CPU "
        "second, ours by stage, against bare decode in the same run and other loaders where they are installed. "
        "LIST is one value or several with commas between.",
    )
    options_of_loader(parser)
    options = parse(parser, words)

    from megaclass.bench.old_loader.plan import on_images, planned
    from megaclass.report.loader import comparisons, loader_tables

    show(planned(options), options, comparisons, loader_tables, on_images(options))


def options_of_loader(parser: Any) -> None:
    """The options of ``bench loader``."""
    lists = {
        "workload": ("faces,imagenet", "faces (112 px, flip), imagenet (random crop 224), imagenet-eval"),
        "source": ("records,folder,synthetic", "what our loader reads"),
        "loader": ("threads,dali", "what decodes for ours: its threads, or DALI where installed"),
        "peer": (
            "dali,pillow,nvjpeg",
            "other loaders that take turns with ours, where installed; none for none",
        ),
    }
    for name, (default, text) in lists.items():
        parser.add_argument(f"--{name}", type=str, default=default, metavar="LIST", help=text)
    others = {
        "data": ("", "record set or image folder to take images from; without it photographs are made up"),
        "images": (0, "distinct images; 0: 2000 faces, 500 photographs"),
        "batch-size": (128, "images of a batch"),
        "batches": (0, "batches of a pass; 0: as many as take about a second"),
        "threads": (0, "of a loader, or its processes; 0: as many as there are cores"),
        "prefetch": (2, "batches that are made ahead (in a DataLoader: by each process)"),
        "device": (
            "auto",
            "auto, cpu or cuda: where ours, and peers that decode on a GPU, deliver the batches",
        ),
        "rounds": (10, "timed passes of every loader"),
        "warmup": (1, "passes before them that are not timed"),
        "seed": (0, "of images, order and augmentation"),
    }
    for name, (value, text) in others.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
    options_of_sweep(parser)
