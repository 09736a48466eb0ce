"""Which rows stand beside which."""

from collections.abc import Iterable, Iterator

from megaclass.results.rows import Row

OURS = "megaclass"


def pairs(rows: Iterable[Row]) -> Iterator[tuple[Row, Row, bool]]:
    """Each of our rows with every other implementation's, where both are ``ok``; and whether they took turns."""
    found = [row for row in rows if row.status == "ok"]
    for mine in (row for row in found if row.implementation == OURS):
        for other in (row for row in found if row.implementation != OURS):
            yield mine, other, bool(mine.group) and other.group == mine.group
