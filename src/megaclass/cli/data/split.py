"""``megaclass data split``: some classes apart from the others."""

from megaclass.cli.data.options import SET, Options, read_options

_OPTIONS: Options = {
    "classes": (int, "how many classes the test set gets"),
    "share": (float, "or what part of them, between 0 and 1"),
    "seed": (0, "of the draw; classes with one image are not drawn"),
}


def split(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data split SET OUTPUT (--classes N | --share 0.1) [--seed N]",
        "Split a set by class into OUTPUT/train and OUTPUT/test: to verify on identities that were not trained on. "
        "Classes are numbered from 0 in both; OUTPUT/split.tsv tells which went where.",
        {"set": SET, "output": "directory for the two record sets; must not hold them"},
        {"": _OPTIONS},
    )

    from megaclass.cli.data.bar import progress_bar
    from megaclass.data.tools import rewrite

    with progress_bar("splitting", f"nothing was written to {options.output}") as show:
        parts = rewrite.split(
            options.set,
            options.output,
            classes=options.classes,
            share=options.share,
            seed=options.seed,
            progress=show,
        )
    for part in parts:
        print(f"{part.images:,} images of {part.classes:,} classes in {part.path}")
