"""``megaclass data shuffle``: a record set in a random order."""

from megaclass.cli.parsing import make_parser, parse


def shuffle(words: list[str]) -> None:
    parser = make_parser(
        "megaclass data shuffle SET OUTPUT [--seed N]",
        "Write a set as a record set in a random order: for readers that take records as they lie in the file (DALI, "
        "MXNet). Training here shuffles by itself and needs none of it.",
    )
    parser.add_argument("set", type=str, help="record set or image folder; several with ':' between them")
    parser.add_argument("output", type=str, help="directory for the record set; must not hold one")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    options = parse(parser, words)

    from megaclass.cli.data.bar import progress_bar
    from megaclass.data.tools import rewrite

    with progress_bar("shuffling", f"nothing was written to {options.output}") as show:
        written = rewrite.shuffle(options.set, options.output, seed=options.seed, progress=show)
    print(
        f"shuffled {written.images:,} images of {written.classes:,} classes into {written.path} (seed {options.seed})"
    )
