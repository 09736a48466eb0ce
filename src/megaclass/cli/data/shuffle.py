"""``megaclass data shuffle``: a record set in a random order."""

from megaclass.cli.data.options import OUTPUT, SET, read_options


def shuffle(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data shuffle SET OUTPUT [--seed N]",
        "Write a set as a record set in a random order: for readers that take records as they lie in the file (DALI, "
        "MXNet). Training here shuffles by itself and needs none of it.",
        {"set": SET, "output": OUTPUT},
        {"": {"seed": (0, "of the order")}},
    )

    from megaclass.cli.data.bar import progress_bar
    from megaclass.data.tools import rewrite

    with progress_bar("shuffling", f"nothing was written to {options.output}") as show:
        written = rewrite.shuffle(options.set, options.output, seed=options.seed, progress=show)
    print(
        f"shuffled {written.images:,} images of {written.classes:,} classes into {written.path} (seed {options.seed})"
    )
