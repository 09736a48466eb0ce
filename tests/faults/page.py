"""docs/reliability.md, from the rows of a campaign and nothing else."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from faults.kinds import HOSTILE, KINDS

ROWS = Path(__file__).with_name("rows.jsonl")  # no rows of a benchmark: `megaclass report` reads those
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"

TEXT = """\
# Reliability

**{held} of {faults} faults** that were put into runs of `megaclass train` left what they must leave: {verdict}
A checkpoint was written every {interval} of {steps} steps.

Measured on {date}: {machine}; {versions}; source {revision}. {minutes:.0f} minutes, two faults at a time, on a CPU
with gloo. No GPU, no network file system and no power cut took part.

```sh
make faults
```

runs them all, writes the rows and this page; `make test` runs some of each kind. A run of twelve steps takes a fraction
of a second. So each call by which a run changes its directory (`open`, `write`, `fsync`, `rename`, `mkdir`, `unlink`)
is refused once with each error, and a run is killed at each call of a save.

After every fault

- the process has ended with the status that is promised and at most one line that says why, without a traceback;
- each checkpoint that is there verifies, settings and log can be read;
- a resume reaches the end and trains no more steps again than the table allows;
- it sees the same samples in the same order and tells the same losses, and on one rank ends with the same bits in every
  tensor, as a run that nobody interrupted;
- no file of its own is left over.

{table}

## Hostile and absurd input

{hostile}

## What did not hold

{failures}
"""


def render(lines: Iterable[str]) -> str:
    """The page of the lines of a file of rows, the first of which says where and when they were measured."""
    head, *rows = map(json.loads, lines)
    held = sum(row["held"] for row in rows)
    environment = head["environment"]
    return TEXT.format(
        held=held,
        faults=len(rows),
        verdict="those that did not are listed below." if held < len(rows) else "all held.",
        machine=f"{environment['cpu']}, {environment['cpu_threads_usable']} threads, {environment['os']}",
        versions=f"Python {environment['python']}, PyTorch {environment['pytorch']}",
        revision=environment["revision"],
        minutes=head["seconds"] / 60,
        table="\n".join(table(rows)),
        hostile="\n".join(f"- `{row['fault']}`" for row in rows if row["kind"] == HOSTILE.name),
        failures="\n".join(_failures(rows)) or "Nothing.",
        **{key: head[key] for key in ("interval", "steps", "date")},
    )


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line of Markdown for each kind that has rows."""
    yield "| what struck | faults | held | steps trained again, at most | allowed | what must hold besides |"
    yield "|---|---|---|---|---|---|"
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind.name]
        if mine:
            held, worst = sum(row["held"] for row in mine), max(row["lost_steps"] or 0 for row in mine)
            allowed = "no bound" if kind.most_lost is None else kind.most_lost
            yield f"| {kind.name} | {len(mine)} | {held} | {worst} | {allowed} | {kind.must} |"


def _failures(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each reason, with the first fault that gave it: the others differ in the moment alone."""
    same: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not row["held"]:
            same.setdefault(f"{row['kind']}: {'; '.join(row['failed'])}", []).append(row)
    for reason, alike in same.items():
        plain = reason.translate(str.maketrans("`|<>\n", "'/() "))
        yield f"- {plain} ({len(alike)}; the first: `{alike[0]['fault']}`)"
