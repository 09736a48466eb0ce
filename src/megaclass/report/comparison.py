"""An earlier and a later measurement of the same cases: what has become slower, and what needs more memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from megaclass.errors import UserError
from megaclass.report.page.casecolumns import split_case
from megaclass.report.page.machines import identity
from megaclass.report.page.measures import steps
from megaclass.report.page.words import HOW_OFTEN, case_text, changes, digits, key_of, number
from megaclass.results.rows import Row
from megaclass.results.verdict import BUSY_PERCENT, FASTER, SLOWER, UNCLEAR, Steps, Verdict, judge

# What machines.identity holds, in its order.
_MACHINE = ("system", "cpu", "cpu_threads", "memory in GiB", "gpu", "gpu_count")
_STYLES = {SLOWER: "bold red", FASTER: "green"}


@dataclass(frozen=True)
class Pair:
    """A case of both measurements, ``ok`` in the earlier. verdict: None where it is not in the later one."""

    earlier: Row
    later: Row
    verdict: Verdict | None

    @property
    def slower(self) -> bool:
        """Or came to no number."""
        return self.verdict is None or self.verdict.word == SLOWER

    @property
    def unclear(self) -> bool:
        return self.verdict is not None and self.verdict.word == UNCLEAR

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
class Missing:
    """A case that was ``ok`` in the earlier measurement and is not in the later one. reason: why, for a person.
    rescaled: what was asked for was measured, at another size."""

    earlier: Row
    reason: str
    rescaled: bool = False


@dataclass(frozen=True)
class Comparison:
    """missing: the ``ok`` cases that only the earlier measurement has. only_later: how many only the later one has."""

    pairs: list[Pair]
    missing: list[Missing]
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
    new = [row for name, row in after.items() if row.status == "ok" and name not in before]
    missing = [_missing(row, new) for name, row in before.items() if name not in matched]
    if not matched:
        counts = f"{_counted(len(before), 'case')} earlier, {_counted(len(after), 'case')} later"
        raise UserError(
            f"no case in common: {counts}; a case is the same where benchmark, implementation and every parameter are, "
            f"but for how often it is measured{_rescaled(missing)}"
        )
    pairs = []
    for name, found in matched.items():
        if not other_machine:
            _require_same_machine(before[name], found)
        lost = found.status != "ok"
        pairs.append(
            Pair(before[name], found, None if lost else judge(_steps(before[name]), _steps(found), threshold))
        )
    return Comparison(pairs, missing, len(new))


def _last(rows: Iterable[Row]) -> dict[str, Row]:
    """By case: the last row that is ``ok``, else the last."""
    found: dict[str, Row] = {}
    for row in rows:
        name = _name(row, row.case)
        if row.status == "ok" or name not in found or found[name].status != "ok":
            found[name] = row
    return found


def _name(row: Row, case: Mapping[str, Any]) -> str:
    """Equal for what is compared: how many steps there are to judge by is for the verdict to say."""
    return key_of({"benchmark": row.benchmark, "by": row.implementation, "case": _what(case)})


def _what(case: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key not in HOW_OFTEN}


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
        and (
            other.key == row.key
            if other.key and row.key
            else _what(other.case).items() <= _what(row.case).items()
        )
    ]
    return ended[-1] if ended else None


def _missing(row: Row, new: Iterable[Row]) -> Missing:
    """new: what only the later measurement has. A suite fitted anew may have made another case of what was asked."""
    for other in new:
        if (row.asked or other.asked) and _asked(row) == _asked(other):
            changed = changes(_what(row.case), _what(other.case)) or "another size"
            return Missing(row, f"the suite was fitted otherwise ({changed})", rescaled=True)
    return Missing(row, "not in the later rows")


def _asked(row: Row) -> str:
    return row.suite + _name(row, row.asked or row.case)


def _rescaled(missing: Sequence[Missing]) -> str:
    found = [one.reason for one in missing if one.rescaled]
    return _printable(f"; {_counted(len(found), 'case')} not compared: {found[0]}") if found else ""


def _require_same_machine(earlier: Row, later: Row) -> None:
    machines = (identity(row.environment) for row in (earlier, later))
    for name, before, after in zip(_MACHINE, *machines, strict=True):
        # A count that is missing is none.
        if (before or None) != (after or None):
            raise UserError(
                _printable(
                    f"measured on different machines: {name} was {before or 'none'}, then {after or 'none'}; "
                )
                + "--allow-other-machine compares them all the same"
            )


def _steps(row: Row) -> Steps:
    found = steps(row)
    if found is None:
        raise UserError(f"samples_ms of {_text(row)}: not all of them are times above 0")
    return found


def _text(row: Row, keys: Iterable[str] | None = None) -> str:
    case = case_text(row.case, keys)
    return _printable(" ".join(filter(None, (row.benchmark, row.implementation, case))))


def _printable(text: str) -> str:
    """Without what would command a terminal: rows are read from files that anyone may have written."""
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def comparison_table(comparison: Comparison, more_memory: float | None = None) -> Group:
    """A case in a line, then what is the same in all of them, and what was not compared. more_memory: the part
    above which a case that needs more is marked."""
    pairs, missing = comparison.pairs, comparison.missing
    keys, same = split_case([pair.later.case for pair in pairs] + [one.earlier.case for one in missing])
    table = Table(box=None, padding=(0, 0, 0, 1))
    table.add_column("case", overflow="fold")
    for name in ("earlier ms", "later ms", "ratio (95% interval)", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for pair in pairs:
        table.add_row(Text(_text(pair.later, keys)), *_numbers(pair), _verdict(pair, more_memory))
    for one in missing:
        before = digits(number(one.earlier.step_ms.get("p50")))
        reason = Text(_printable(f"no longer measured: {one.reason}"), "bold red")
        table.add_row(Text(_text(one.earlier, keys)), before, "", "", "", reason)
    return Group(table, *map(Text, _remarks(comparison, same)))


def _numbers(pair: Pair) -> list[str]:
    verdict, memory = pair.verdict, pair.memory_ratio
    return [
        digits(number(pair.earlier.step_ms.get("p50"))),
        digits(number(pair.later.step_ms.get("p50"))) if verdict else "",
        str(verdict.ratio) if verdict and verdict.ratio else "",
        f"{memory - 1:+.1%}" if memory is not None and verdict else "",
    ]


def _verdict(pair: Pair, more_memory: float | None) -> Text:
    if pair.verdict is None:
        return Text(_printable(f"{pair.later.status}: {pair.later.reason}"), "bold red")
    text = Text(pair.verdict.word, _STYLES.get(pair.verdict.word, ""))
    if pair.verdict.reason:
        text.append(f": {pair.verdict.reason}", "not bold dim")
    if more_memory is not None and pair.needs_more(more_memory):
        text.append("; more memory", "bold red")
    return text


def _remarks(comparison: Comparison, same: str) -> list[str]:
    lines = [_printable(f"The same in all: {same}.")] if same else []
    waits = [
        number(row.cpu_wait_percent) or 0.0 for pair in comparison.pairs for row in (pair.earlier, pair.later)
    ]
    waits = [percent for percent in waits if percent > BUSY_PERCENT]
    if waits:
        lines.append(
            f"Other programs were busy in {_counted(len(waits), 'measurement')} (processors were waited for in up to "
            f"{max(waits):.0f}% of the time): that says nothing about the program. Measure again."
        )
    if rescaled := sum(one.rescaled for one in comparison.missing):
        lines.append(
            f"Not compared: {_counted(rescaled, 'case')} of a suite that was fitted otherwise. What one size "
            "takes says nothing about another."
        )
    if comparison.only_later:
        lines.append(
            f"Not compared: {_counted(comparison.only_later, 'case')} that only the later rows have."
        )
    return lines


def summary(comparison: Comparison, threshold: float) -> str:
    """``2 cases: 1 slower by more than 5%, 1 equal``."""
    words: dict[str, int] = {}
    lost = "no longer measured"
    for word in [
        *(pair.verdict.word if pair.verdict else lost for pair in comparison.pairs),
        *(lost for _ in comparison.missing),
    ]:
        said = f"{word} by more than {threshold:.6g}%" if word in (SLOWER, FASTER) else word
        words[said] = words.get(said, 0) + 1
    counts = ", ".join(f"{count} {word}" for word, count in words.items())
    return f"{_counted(sum(words.values()), 'case')}: {counts}"


def failures(
    comparison: Comparison,
    more_memory: float | None,
    *,
    slower: bool,
    unclear: bool = False,
    allow_missing: bool = False,
) -> int:
    """How many cases a build fails for. slower: those that became so, came to no number, or, unless
    ``allow_missing``, are no longer there."""
    found = sum(
        (slower and pair.slower)
        or (unclear and pair.unclear)
        or (more_memory is not None and pair.needs_more(more_memory))
        for pair in comparison.pairs
    )
    return found + (len(comparison.missing) if slower and not allow_missing else 0)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
