"""``megaclass data merge``: several sets as one."""

from megaclass.cli.parsing import make_parser, parse
from megaclass.errors import UserError


def merge(words: list[str]) -> None:
    parser = make_parser(
        "megaclass data merge OUTPUT SET SET [...] [--same-classes]",
        "Write several sets as one record set. The classes of each set are numbered behind those of the sets before "
        "it. The same without writing: --data.path SET:SET.",
    )
    parser.add_argument("output", type=str, help="directory for the record set; must not hold one")
    parser.add_argument("sets", type=str, nargs="+", help="record sets or image folders")
    parser.add_argument(
        "--same-classes", action="store_true", help="match classes by name: sets that share their classes"
    )
    options = parse(parser, words)
    if len(options.sets) < 2:
        raise UserError("merge takes the output and two sets or more, e.g. `megaclass data merge OUTPUT A B`")

    from megaclass.cli.data.bar import progress_bar
    from megaclass.data.tools import rewrite

    with progress_bar("merging", f"nothing was written to {options.output}") as show:
        written = rewrite.merge(
            options.sets, options.output, same_classes=options.same_classes, progress=show
        )
    print(
        f"merged {len(options.sets)} sets: {written.images:,} images of {written.classes:,} classes in {written.path}"
    )
