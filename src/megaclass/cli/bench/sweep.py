"""What the benchmarks have in common on the console: rows as they come, comparisons, tables at the end."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

_OUTPUT = "JSON lines file to which a row is appended for each measurement"


def options_of_sweep(parser: Any, output: str = _OUTPUT, flags: Sequence[str] = ("-o", "--output")) -> None:
    """The options that every sweep has; ``output`` says what there is of it."""
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds that an implementation may take for a case"
    )
    parser.add_argument(
        *flags,
        type=str,
        default="",
        help=f"{output}; given again, a sweep goes on where it stopped",
    )
    parser.add_argument(
        "--again", action="store_true", help="measure what the file has rows of already, too, and append it"
    )


def show(
    plan: Sequence[Any],
    options: Any,
    comparisons: Callable[[Any], list[str]],
    tables: Callable[[Any], object],
    run: Callable[..., Iterator[Any]] | None = None,
    heading: object = None,
) -> list[Any]:
    """Measure what ``options.output`` does not have yet, print the rows as they come and append them; returns the rows
    of the whole plan. ``heading``: is printed first."""
    from megaclass.bench.console import SweepConsole
    from megaclass.bench.runner import run_case
    from megaclass.bench.sweep import Measured, measure
    from megaclass.results.rows import Row, RowWriter

    output = options.output
    where = f"rows appended to {output}" if output else "rows not kept: no --output FILE.jsonl"
    found: dict[int, list[Row]] = {}
    with RowWriter(output) as writer, SweepConsole() as console:
        if heading:
            console.print(heading)
        measured = Measured(output, options.again)
        for number, planned in enumerate(plan):
            if rows := measured.rows(planned):
                found[number] = rows
        if found:
            console.print(
                f"{len(found)} of {len(plan)} cases are in {output} already, measured here; --again measures them too"
            )
        todo = [number for number in range(len(plan)) if number not in found]
        try:
            for number, rows in zip(
                todo,
                measure([plan[i] for i in todo], options.timeout, console, run or run_case),
                strict=True,
            ):
                if plan[number].skip and not heading:
                    console.print(f"left out: {plan[number].case.text}: {plan[number].skip}")
                for row in rows:
                    writer.write(row)
                    if not plan[number].skip:
                        console.row(row)
                for line in comparisons(rows):
                    console.print(f"  {line}")
                found[number] = rows
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{where}{'; the same command goes on from there' if output else ''}"
            ) from None
        every = [row for number in range(len(plan)) for row in found[number]]
        console.print(tables(every))
        console.print(where if todo else f"nothing was left to measure; the rows are in {output}")
    return every
