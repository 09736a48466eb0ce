"""An earlier and a later measurement of the same cases: what has become slower, and what needs more memory."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megaclass.errors import UserError
from megaclass.report.machines import IDENTITY
from megaclass.report.sources import Source, steps_of
from megaclass.report.table import Cell, Column, Line, Table, printable
from megaclass.report.tables import case_columns, number_cell
from megaclass.report.words import case_text, changes, effort, key_of, number
from megaclass.results.verdict import FASTER, SLOWER, UNCLEAR, Verdict, judge

THRESHOLD = 0.05
_LOST = "no longer measured"


@dataclass(frozen=True)
class Pair:
    """A case that was ``ok`` in the earlier measurement. later: None where it is not in the later one at all.
    verdict: None where that came to no number. reason: why, for a person."""

    earlier: Source
    later: Source | None
    verdict: Verdict | None = None
    reason: str = ""

    @property
    def word(self) -> str:
        return self.verdict.word if self.verdict else _LOST

    @property
    def memory_ratio(self) -> float | None:
        """Of the GPU, or that of the process on a CPU; None where either did not measure it."""
        for name in ("allocated", "process") if self.later else ():
            before, after = (number(s.row.memory_mb.get(name)) for s in (self.earlier, self.later) if s)
            if before is not None and after is not None and before > 0:
                return after / before
        return None

    def needs_more(self, threshold: float | None) -> bool:
        return threshold is not None and (self.memory_ratio or 0.0) > 1 + threshold


@dataclass(frozen=True)
class Comparison:
    """only_later: how many cases only the later measurement has."""

    pairs: list[Pair]
    only_later: int

    @property
    def missing(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.later is None]


def compare_sources(
    earlier: Iterable[Source],
    later: Iterable[Source],
    threshold: float = THRESHOLD,
    *,
    other_machine: bool = False,
) -> Comparison:
    """Match the cases of both and judge each, in the order of ``earlier``.

    threshold: the part by which a step may be longer. other_machine: rows of different machines are compared too.
    Of several rows of a case the last that is ``ok`` counts. UserError: no case in common, different machines.
    """
    before = {key: source for key, source in _last(earlier).items() if source.ok}
    after = _last(later)
    new = [source for key, source in after.items() if source.ok and key not in before]
    pairs = []
    for key, source in before.items():
        found = after.get(key) or _ended(source, after.values())
        if found and not other_machine:
            _require_same_machine(source, found)
        if found is None:
            pairs.append(Pair(source, None, None, f"{_LOST}: {_why_missing(source, new)}"))
        elif not found.ok:
            pairs.append(Pair(source, found, None, f"{found.row.status}: {found.row.reason}"))
        else:
            steps = [_steps(one) for one in (source, found)]
            pairs.append(Pair(source, found, judge(steps[0], steps[1], threshold)))
    comparison = Comparison(pairs, len(new))
    if len(comparison.missing) == len(pairs):
        counts = f"{_counted(len(before), 'case')} earlier, {_counted(len(after), 'case')} later"
        raise UserError(
            f"no case in common: {counts}; a case is the same where benchmark, implementation and every parameter are, "
            f"but for how often it is measured{printable(''.join(f'; {p.reason}' for p in pairs[:1]))}"
        )
    return comparison


def _last(sources: Iterable[Source]) -> dict[str, Source]:
    """By case: the last row that is ``ok``, else the last."""
    found: dict[str, Source] = {}
    for source in sources:
        if source.ok or source.case_key not in found or not found[source.case_key].ok:
            found[source.case_key] = source
    return found


def _what(case: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key not in effort()}


def _ended(source: Source, after: Iterable[Source]) -> Source | None:
    """The row of the same case that failed: it lacks those parameters that only a finished measurement knows, such as
    the version of a peer."""
    mine = source.row
    for other in (other for other in after if not other.ok):
        row = other.row
        if (row.benchmark, row.implementation) == (mine.benchmark, mine.implementation):
            keyed = row.key and mine.key
            if row.key == mine.key if keyed else _what(row.case).items() <= _what(mine.case).items():
                return other
    return None


def _why_missing(source: Source, new: Iterable[Source]) -> str:
    """new: what only the later measurement has. A suite fitted anew may have made another case of what was asked."""

    def asked(one: Source) -> str:
        row = one.row
        return key_of([row.suite, row.benchmark, row.implementation, _what(row.asked or row.case)])

    for other in new:
        if (source.row.asked or other.row.asked) and asked(source) == asked(other):
            changed = changes(_what(source.row.case), _what(other.row.case)) or "another size"
            return f"the suite was fitted otherwise ({changed})"
    return "not in the later rows"


def _require_same_machine(earlier: Source, later: Source) -> None:
    for name, before, after in zip(IDENTITY, earlier.machine, later.machine, strict=True):
        if before != after:
            told = f"measured on different machines: {name} was {before or 'none'}, then {after or 'none'}; "
            raise UserError(printable(told) + "--allow-other-machine compares them all the same")


def _steps(source: Source) -> Any:
    if (found := steps_of(source.row)) is None:
        text = printable(f"{source.row.benchmark} {source.row.implementation} {case_text(source.row.case)}")
        raise UserError(f"samples_ms of {text}: not all of them are times above 0")
    return found


def comparison_table(title: str, comparison: Comparison, more_memory: float | None = None) -> Table:
    """A case in a line. more_memory: the part above which a case that needs more is marked."""
    pairs = comparison.pairs
    labels, cases, remarks = case_columns([pair.later or pair.earlier for pair in pairs])
    heads = [*labels, *map(Column, ("Earlier, ms", "Later, ms", "Ratio of times", "Memory"))]
    lines = []
    for pair, case in zip(pairs, cases, strict=True):
        word = pair.word + ("; more memory" if pair.needs_more(more_memory) else "")
        reason = pair.reason or (pair.verdict.reason if pair.verdict else "")
        busy = [note for source in (pair.earlier, pair.later) if source for note in source.busy]
        notes = tuple(dict.fromkeys(filter(None, [reason, *busy])))
        lines.append(Line((*case, *_numbers(pair), Cell(word, notes=notes))))
    if comparison.only_later:
        count = _counted(comparison.only_later, "case")
        remarks = [*remarks, f"Not compared: {count} that only the later rows have."]
    return Table(title, [*heads, Column("Verdict", False)], lines, remarks)


def _numbers(pair: Pair) -> list[Cell]:
    earlier = number_cell(pair.earlier, number(pair.earlier.row.step_ms.get("p50")))
    if pair.later is None or pair.verdict is None:
        return [earlier, Cell(), Cell(), Cell()]
    both, memory, ratio = (pair.later, pair.earlier), pair.memory_ratio, pair.verdict.ratio
    return [
        earlier,
        number_cell(pair.later, number(pair.later.row.step_ms.get("p50"))),
        Cell(str(ratio), ratio.value, both) if ratio else Cell(),
        Cell() if memory is None else Cell(f"{memory - 1:+.1%}", memory, both),
    ]


def summary(pairs: Sequence[Pair], threshold: float) -> str:
    """``2 cases: 1 slower by more than 5%, 1 equal``."""
    more = f" by more than {100 * threshold:.6g}%"
    words = Counter(pair.word + more * (pair.word in (SLOWER, FASTER)) for pair in pairs)
    return f"{_counted(len(pairs), 'case')}: {', '.join(f'{count} {word}' for word, count in words.items())}"


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
    return sum(
        (slower and pair.word in (SLOWER, _LOST) and not (allow_missing and pair.later is None))
        or (unclear and pair.word == UNCLEAR)
        or pair.needs_more(more_memory)
        for pair in comparison.pairs
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
