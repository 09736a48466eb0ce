"""What the benchmarks have in common on the console: rows as they come, comparisons, tables at the end."""

from collections.abc import Callable, Iterable
from typing import Any


def show(
    measured: Callable[[Any], Iterable[Any]],
    output: str,
    comparisons: Callable[[Any], list[str]],
    tables: Callable[[Any], object],
) -> None:
    """Print and append to ``output`` the rows of ``measured(console)``, which come in lists, a case each."""
    from megaclass.bench.console import SweepConsole
    from megaclass.rows import Row, RowWriter

    where = f"rows appended to {output}" if output else "rows not kept: no --output FILE.jsonl"
    rows: list[Row] = []
    with RowWriter(output) as writer, SweepConsole() as console:
        try:
            for found in measured(console):
                for row in found:
                    writer.write(row)
                    console.row(row)
                for line in comparisons(found):
                    console.print(f"  {line}")
                rows += found
        except KeyboardInterrupt:
            raise KeyboardInterrupt(where) from None
        console.print(tables(rows))
        console.print(where)
