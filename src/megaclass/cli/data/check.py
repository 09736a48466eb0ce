"""``megaclass data check``: every image of a data set looked at."""

import contextlib
import json
from collections import defaultdict
from typing import TYPE_CHECKING

from megaclass.cli.data.options import SET, Options, read_options
from megaclass.cli.parsing import new_file
from megaclass.errors import UserError

if TYPE_CHECKING:
    from megaclass.data.tools.entries import Finding


_OPTIONS: Options = {
    "limit": (10, "how many findings of each kind are printed; 0: none"),
    "output": ("", "write all findings to this file, a line of JSON each"),
    "workers": (0, "decoding threads; 0: one for each core"),
}


def check(words: list[str]) -> int:
    options = read_options(
        words,
        "megaclass data check SET [--limit N] [--output FILE.jsonl]",
        "Decode every image, and list damaged, duplicate and mislabelled ones, labels out of range, and what in the "
        "index or the identity records of a record set disagrees. Exit status 0: sound; 1: something was found.",
        {"set": f"{SET} are searched for common images too"},
        {"": _OPTIONS},
    )
    for name in ("limit", "workers"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name}: {getattr(options, name)} is below 0")
    output = new_file(options.output)

    from rich.console import Console

    from megaclass.cli.data.bar import progress_bar
    from megaclass.cli.data.files import new_lines
    from megaclass.data.tools import check as tool
    from megaclass.data.tools.entries import KINDS
    from megaclass.report.console import check_table

    first: defaultdict[str, list[Finding]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(new_lines("--output", output)) if output else None

        def report(finding: "Finding") -> None:
            if len(first[finding.kind]) < options.limit:
                first[finding.kind].append(finding)
            if write:
                write(json.dumps(finding._asdict()))

        kept = f"what was found so far is in {output}" if output else "nothing was written"
        show = stack.enter_context(progress_bar("checking", kept))
        summary = tool.check(options.set, report, workers=options.workers, progress=show)

    console = Console(soft_wrap=True, highlight=False)
    for kind, text in KINDS.items():
        if count := summary.found.get(kind):
            console.print(f"{text}: {count:,}", style="bold")
            for finding in first[kind]:
                console.print(f"  {finding}", markup=False)
            if count > len(first[kind]):
                console.print(f"  … and {count - len(first[kind]):,} more")
    console.print(check_table(options.set, summary.found, KINDS, summary.images, summary.decoded))
    print(
        f"{summary.images:,} images, {summary.encoded_bytes / 1e6:,.1f} MB in {summary.seconds:,.1f} s: "
        f"{summary.images / summary.seconds:,.0f} images/s"
    )
    if output:
        print(f"findings  {output}")
    return 1 if summary.found else 0
