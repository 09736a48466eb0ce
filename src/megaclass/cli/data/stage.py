"""``megaclass data stage``: a data set copied to a local disk."""

import os
import sys

from megaclass.cli.data.options import SET, read_options


def stage(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass data stage SET DIRECTORY [--verify]",
        "Copy a set to a local disk before training, each file read back and compared. What is there already is "
        "kept; a copy that was broken off goes on; several processes of a machine may call this at once. Standard "
        "output gets the path to train on and nothing else: --data.path $(megaclass data stage SET DIRECTORY).",
        {"set": SET, "directory": "where to; the set gets a directory of its own name in it"},
        {"": {"verify": (False, "compare what is there already with the source, byte for byte")}},
    )

    from megaclass.cli.data.bar import progress_bar
    from megaclass.data.tools import stage as tool

    with progress_bar("copying", "started again, it goes on from here", of_bytes=True) as show:
        staged = tool.stage(options.set, options.directory, verify=options.verify, progress=show)
    for found in staged:
        print(
            f"{found.path}: {found.files:,} files, {found.copied_bytes / 1e6:,.1f} MB copied and verified in "
            f"{found.seconds:,.1f} s, {found.kept_bytes / 1e6:,.1f} MB were there",
            file=sys.stderr,
        )
    sys.stdout.flush()
    # A shell takes the very bytes of a path, whatever they are.
    sys.stdout.buffer.write(os.fsencode(os.pathsep.join(str(found.path) for found in staged)) + b"\n")
    sys.stdout.buffer.flush()
