"""An earlier and a later measurement of the same cases: what has become slower, and what needs more memory."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megaclass.errors import UserError, printable
from megaclass.report.document import Cell, Column, Line, Table
from megaclass.report.own import case_columns, number_cell
from megaclass.report.sources import IDENTITY, Source
from megaclass.report.words import effort, key_of
from megaclass.results.verdict import FASTER, SLOWER, Verdict, judge

THRESHOLD = 0.05
LOST = "no longer measured"


@dataclass(frozen=True)
class Pair:
    """A case that was ``ok`` in the earlier measurement."""

    earlier: Source
    later: Source | None  # None where the case is not in the later one at all
    verdict: Verdict  # its word is ``LOST`` where the later one came to no number

    @property
    def word(self) -> str:
        return self.verdict.word

    @property
    def memory_ratio(self) -> float | None:
        """Of the GPU, or of the process on a CPU; None where either did not measure it."""
        later, earlier = self.later.row.memory_mb if self.later else {}, self.earlier.row.memory_mb
        for over, under in ((later.get(name), earlier.get(name)) for name in ("allocated", "process")):
            if over is not None and under:
                return over / under
        return None

    def needs_more(self, threshold: float | None) -> bool:
        return threshold is not None and (self.memory_ratio or 0.0) > 1 + threshold


def compare_sources(
    earlier: Iterable[Source],
    later: Iterable[Source],
    threshold: float = THRESHOLD,
    *,
    other_machine: bool = False,
) -> list[Pair]:
    """Match the cases of both and judge each, in the order of ``earlier``.

    threshold: the part by which a step may be longer. other_machine: rows of different machines are compared too.
    Of several rows of a case the last that is ``ok`` counts. UserError: no case in common, different machines.
    """
    before = {key: source for key, source in _last(earlier).items() if source.ok}
    after = _last(later)
    pairs = []
    for key, source in before.items():
        found = after.get(key)
        if found is None:
            pairs.append(Pair(source, None, Verdict(LOST, None, f"{LOST}: not in the later rows")))
            continue
        if not other_machine:
            _require_same_machine(source, found)
        if found.ok:
            pairs.append(Pair(source, found, judge(source.row, found.row, threshold)))
        else:
            pairs.append(Pair(source, found, Verdict(LOST, None, f"{found.row.status}: {found.row.reason}")))
    if all(pair.later is None for pair in pairs):
        raise UserError(
            f"no case in common: {_counted(len(before))} earlier, {_counted(len(after))} later; a case is the same "
            "where benchmark, implementation and every parameter are, but for how often it is measured"
        )
    return pairs


def _last(sources: Iterable[Source]) -> dict[str, Source]:
    """By case, which says nothing of how often it was measured: the last row that is ``ok``, else the last."""
    aside, found = effort(), dict[str, Source]()
    for source in sources:
        row = source.row
        case = {key: value for key, value in row.case.items() if key not in aside}
        key = key_of([row.benchmark, row.implementation, case])
        if source.ok or key not in found or not found[key].ok:
            found[key] = source
    return found


def _require_same_machine(earlier: Source, later: Source) -> None:
    for name, before, after in zip(IDENTITY, earlier.machine, later.machine, strict=True):
        if before != after:
            told = f"measured on different machines: {name} was {before or 'none'}, then {after or 'none'}; "
            raise UserError(printable(told) + "--allow-other-machine compares them all the same")


def comparison_table(title: str, pairs: Sequence[Pair], more_memory: float | None = None) -> Table:
    """A case in a line. more_memory: the part above which a case that needs more is marked."""
    labels, cases, remarks = case_columns([pair.later or pair.earlier for pair in pairs])
    heads = [*labels, *map(Column, ("Earlier, ms", "Later, ms", "Ratio of times", "Memory"))]
    lines = []
    for pair, case in zip(pairs, cases, strict=True):
        word = pair.word + ("; more memory" if pair.needs_more(more_memory) else "")
        busy = [note for source in (pair.earlier, pair.later) if source for note in source.busy]
        notes = tuple(dict.fromkeys(filter(None, [pair.verdict.reason, *busy])))
        lines.append(Line([*case, *_numbers(pair), Cell(word, notes=notes)]))
    return Table(title, [*heads, Column("Verdict", False)], lines, remarks)


def _numbers(pair: Pair) -> list[Cell]:
    earlier = number_cell(pair.earlier, pair.earlier.row.step_ms.get("p50"))
    if pair.later is None or pair.word == LOST:
        return [earlier, Cell(), Cell(), Cell()]
    both, memory, ratio = (pair.later, pair.earlier), pair.memory_ratio, pair.verdict.ratio
    return [
        earlier,
        number_cell(pair.later, pair.later.row.step_ms.get("p50")),
        Cell(str(ratio), ratio.value, both) if ratio else Cell(),
        Cell() if memory is None else Cell(f"{memory - 1:+.1%}", memory, both),
    ]


def summary(pairs: Sequence[Pair], threshold: float) -> str:
    """``2 cases: 1 slower by more than 5%, 1 equal``."""
    more = f" by more than {100 * threshold:.6g}%"
    words = Counter(pair.word + more * (pair.word in (SLOWER, FASTER)) for pair in pairs)
    return f"{_counted(len(pairs))}: {', '.join(f'{count} {word}' for word, count in words.items())}"


def _counted(cases: int) -> str:
    return f"{cases} case{'s' * (cases != 1)}"
