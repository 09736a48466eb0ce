"""``megaclass data merge``: several sets as one."""

from megaclass.cli.data.options import OUTPUT, read_options
from megaclass.errors import UserError


def merge(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data merge OUTPUT SET SET [...] [--same-classes]",
        "Write several sets as one record set. The classes of each set are numbered behind those of the sets before "
        "it. The same without writing: --data.path SET:SET.",
        {"output": OUTPUT, "sets...": "record sets or image folders"},
        {"": {"same-classes": (False, "match classes by name: sets that share their classes")}},
    )
    if len(options.sets) < 2:
        raise UserError("merge takes the output and two sets or more, e.g. `megaclass data merge OUTPUT A B`")

    from megaclass.cli.data.bar import progress_bar
    from megaclass.data.tools import rewrite

    with progress_bar("merging", f"nothing was written to {options.output}") as show:
        same = options.same_classes
        written = rewrite.merge(options.sets, options.output, same_classes=same, progress=show)
    print(
        f"merged {len(options.sets)} sets: {written.images:,} images of {written.classes:,} classes in {written.path}"
    )
