"""``megaclass data split``: some classes apart from the others."""

from megaclass.cli.parsing import make_parser, parse


def split(words: list[str]) -> None:
    parser = make_parser(
        "megaclass data split SET OUTPUT (--classes N | --share 0.1) [--seed N]",
        "Split a set by class into OUTPUT/train and OUTPUT/test: to verify on identities that were not trained on. "
        "Classes are numbered from 0 in both; OUTPUT/split.tsv tells which went where.",
    )
    parser.add_argument("set", type=str, help="record set or image folder; several with ':' between them")
    parser.add_argument("output", type=str, help="directory for the two record sets; must not hold them")
    parser.add_argument("--classes", type=int, default=None, help="how many classes the test set gets")
    parser.add_argument("--share", type=float, default=None, help="or what part of them, between 0 and 1")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the draw; classes with one image are not drawn"
    )
    parser.add_argument("--train-name", type=str, default="train", help="name of the first set")
    parser.add_argument("--test-name", type=str, default="test", help="name of the second set")
    options = parse(parser, words)

    from megaclass.cli.data.bar import progress_bar
    from megaclass.data.tools import rewrite

    with progress_bar("splitting", f"nothing was written to {options.output}") as show:
        parts = rewrite.split(
            options.set,
            options.output,
            classes=options.classes,
            share=options.share,
            seed=options.seed,
            names=(options.train_name, options.test_name),
            progress=show,
        )
    for part in parts:
        print(f"{part.images:,} images of {part.classes:,} classes in {part.path}")
