"""``megaclass data stage``: a data set copied to a local disk."""

import os
import sys
from typing import TYPE_CHECKING

from megaclass.cli.data.options import SET, read_options

if TYPE_CHECKING:
    from megaclass.data.tools.stage import Staged


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

    def waiting(directory: object) -> None:
        print(f"another process is staging {directory}; waiting for it", file=sys.stderr)

    with progress_bar("copying", "started again, it goes on from here", of_bytes=True) as show:
        staged = tool.stage(
            options.set, options.directory, verify=options.verify, progress=show, waiting=waiting
        )
    for found in staged:
        print(f"{found.path}: {found.files:,} files, {_story(found)}", file=sys.stderr)
    sys.stdout.flush()
    # A shell takes the very bytes of a path, whatever they are.
    sys.stdout.buffer.write(os.fsencode(os.pathsep.join(str(found.path) for found in staged)) + b"\n")
    sys.stdout.buffer.flush()


def _story(found: "Staged") -> str:
    kept = f"{found.kept_bytes / 1e6:,.1f} MB were there"
    if not found.copied_bytes:
        return f"{kept}, nothing was left to copy"
    copied = (
        f"{found.copied_bytes / 1e6:,.1f} MB copied and verified in {found.seconds:,.1f} s "
        f"({found.megabytes_per_second:,.0f} MB/s)"
    )
    return f"{copied}; {kept}" if found.kept_bytes else copied
