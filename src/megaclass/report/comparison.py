"""An earlier and a later measurement of the same cases: what has become slower, and what needs more memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from megaclass.errors import UserError
from megaclass.report.page.casecolumns import split_case
from megaclass.report.page.measures import steps
from megaclass.report.page.words import case_text, digits, key_of, number
from megaclass.rows import Row
from megaclass.verdict import BUSY_PERCENT, FASTER, SLOWER, Steps, Verdict, judge

MACHINE = ("system", "cpu", "gpu", "gpu_count")
_STYLES = {SLOWER: "bold red", FASTER: "green"}


@dataclass(frozen=True)
class Pair:
    """A case that was ``ok`` in the earlier measurement. verdict: None where it is not in the later one."""

    earlier: Row
    later: Row
    verdict: Verdict | None

    @property
    def slower(self) -> bool:
        """Or no longer measured at all."""
        return self.verdict is None or self.verdict.word == SLOWER

    @property
    def memory_ratio(self) -> float | None:
        """Of the GPU, or that of the process on a CPU; None where either did not measure it."""
        for name in ("allocated", "process"):
            before, after = (number(row.memory_mb.get(name)) for row in (self.earlier, self.later))
            if before is not None and after is not None and before > 0:
                return after / before
        return None

    def needs_more(self, threshold: float) -> bool:
        return self.memory_ratio is not None and self.memory_ratio > 1 + threshold


@dataclass(frozen=True)
class Comparison:
    """only_earlier, only_later: the ``ok`` cases that only one of them has."""

    pairs: list[Pair]
    only_earlier: int
    only_later: int


def compare_rows(
    earlier: Iterable[Row], later: Iterable[Row], threshold: float = 0.05, *, other_machine: bool = False
) -> Comparison:
    """Match the cases of both and judge each, in the order of ``earlier``.

    threshold: the part by which a step may be longer. other_machine: rows of different machines are compared too.
    Of several rows of a case the last that is ``ok`` counts. UserError: no case in common, different machines.
    """
    before = {name: row for name, row in _last(earlier).items() if row.status == "ok"}
    after = _last(later)
    matched = {name: found for name, row in before.items() if (found := _match(name, row, after))}
    if not matched:
        raise UserError(
            f"no case in common: {_counted(len(before), 'case')} earlier, {_counted(len(after), 'case')} later; a case "
            "is the same where benchmark, implementation and every parameter are"
        )
    pairs = []
    for name, found in matched.items():
        if not other_machine:
            _require_same_machine(before[name], found)
        lost = found.status != "ok"
        pairs.append(
            Pair(before[name], found, None if lost else judge(_steps(before[name]), _steps(found), threshold))
        )
    new = sum(row.status == "ok" for name, row in after.items() if name not in before)
    return Comparison(pairs, len(before) - len(matched), new)


def _last(rows: Iterable[Row]) -> dict[str, Row]:
    """By case: the last row that is ``ok``, else the last."""
    found: dict[str, Row] = {}
    for row in rows:
        name = key_of({"benchmark": row.benchmark, "by": row.implementation, "case": row.case})
        if row.status == "ok" or name not in found or found[name].status != "ok":
            found[name] = row
    return found


def _match(name: str, row: Row, after: dict[str, Row]) -> Row | None:
    """The row of the same case. One that failed lacks those parameters that only a finished measurement knows, such as
    the version of a peer."""
    if name in after:
        return after[name]
    ended = [
        other
        for other in after.values()
        if other.status != "ok"
        and (other.benchmark, other.implementation) == (row.benchmark, row.implementation)
        and (other.key == row.key if other.key and row.key else other.case.items() <= row.case.items())
    ]
    return ended[-1] if ended else None


def _require_same_machine(earlier: Row, later: Row) -> None:
    for name in MACHINE:
        # A count that is missing is none.
        before, after = (row.environment.get(name) or None for row in (earlier, later))
        if before != after:
            raise UserError(
                f"measured on different machines: {name} was {before or 'none'}, then {after or 'none'}; "
                "--allow-other-machine compares them all the same"
            )


def _steps(row: Row) -> Steps:
    found = steps(row)
    if found is None:
        raise UserError(f"samples_ms of {_text(row)}: not all of them are times above 0")
    return found


def _text(row: Row, keys: Iterable[str] | None = None) -> str:
    case = case_text(row.case, keys)
    return " ".join(filter(None, (row.benchmark, row.implementation, case)))


def comparison_table(comparison: Comparison, more_memory: float | None = None) -> Group:
    """A case in a line, then what is the same in all of them, and what was not compared. more_memory: the part
    above which a case that needs more is marked."""
    pairs = comparison.pairs
    keys, same = split_case([pair.later.case for pair in pairs])
    table = Table(box=None, padding=(0, 0, 0, 1))
    table.add_column("case", overflow="fold")
    for name in ("earlier ms", "later ms", "ratio (95% interval)", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for pair in pairs:
        table.add_row(Text(_text(pair.later, keys)), *_numbers(pair), _verdict(pair, more_memory))
    return Group(table, *map(Text, _remarks(comparison, same)))


def _numbers(pair: Pair) -> list[str]:
    verdict, memory = pair.verdict, pair.memory_ratio
    return [
        digits(pair.earlier.step_ms.get("p50")),
        digits(pair.later.step_ms.get("p50")) if verdict else "",
        str(verdict.ratio) if verdict and verdict.ratio else "",
        f"{memory - 1:+.1%}" if memory is not None and verdict else "",
    ]


def _verdict(pair: Pair, more_memory: float | None) -> Text:
    if pair.verdict is None:
        return Text(f"{pair.later.status}: {pair.later.reason}", "bold red")
    text = Text(pair.verdict.word, _STYLES.get(pair.verdict.word, ""))
    if pair.verdict.reason:
        text.append(f": {pair.verdict.reason}", "not bold dim")
    if more_memory is not None and pair.needs_more(more_memory):
        text.append("; more memory", "bold red")
    return text


def _remarks(comparison: Comparison, same: str) -> list[str]:
    lines = [f"The same in all: {same}."] if same else []
    waits = [
        row.cpu_wait_percent
        for pair in comparison.pairs
        for row in (pair.earlier, pair.later)
        if (number(row.cpu_wait_percent) or 0) > BUSY_PERCENT
    ]
    if waits:
        lines.append(
            f"Other programs were busy in {_counted(len(waits), 'measurement')} (processors were waited for in up to "
            f"{max(w for w in waits if w):.0f}% of the time): there only waiting for data is judged."
        )
    for count, which in ((comparison.only_earlier, "earlier"), (comparison.only_later, "later")):
        if count:
            lines.append(f"Not compared: {_counted(count, 'case')} that only the {which} rows have.")
    return lines


def summary(comparison: Comparison, threshold: float) -> str:
    """``2 cases: 1 slower by more than 5%, 1 equal``."""
    words: dict[str, int] = {}
    for pair in comparison.pairs:
        word = pair.verdict.word if pair.verdict else "no longer measured"
        word = f"{word} by more than {threshold:.6g}%" if word in (SLOWER, FASTER) else word
        words[word] = words.get(word, 0) + 1
    counts = ", ".join(f"{count} {word}" for word, count in words.items())
    return f"{_counted(len(comparison.pairs), 'case')}: {counts}"


def failures(comparison: Comparison, more_memory: float | None, slower: bool) -> Sequence[Pair]:
    """The pairs for which a build fails."""
    return [
        pair
        for pair in comparison.pairs
        if (slower and pair.slower) or (more_memory is not None and pair.needs_more(more_memory))
    ]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
