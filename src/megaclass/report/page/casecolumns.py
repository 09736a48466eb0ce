"""Cases as columns of a table: what differs between rows is a column, what is the same is said once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from megaclass.report.page.document import Cell, Column, Line, Notes, Table
from megaclass.report.page.measures import busy
from megaclass.report.page.sources import Source
from megaclass.report.page.words import (
    HOW_OFTEN,
    case_text,
    changes,
    key_of,
    name_of,
    number,
    scaled_down,
    value_text,
)

# How often and in what portions something was measured: no column, as the raw row tells it.
_NO_COLUMN = (*HOW_OFTEN, "rounds", "batches", "prefetch")

# The head of a column, and its cell for a row that is ok.
Measure: TypeAlias = tuple[str, Callable[[Source, Notes], Cell]]


def split_case(cases: Sequence[Mapping[str, Any]], keep: Iterable[str] = ()) -> tuple[list[str], str]:
    """The keys that become columns: ``keep`` and what differs; and what is the same in all as text."""
    keys = dict.fromkeys(key for case in cases for key in case)
    kept = [key for key in keep if key in keys]
    differ = [
        key
        for key in keys
        if key not in _NO_COLUMN and len({key_of({"": case.get(key)}) for case in cases}) > 1
    ]
    heads = kept + [key for key in differ if key not in kept]
    same = [
        key for key in keys if key not in heads and all(case.get(key) == cases[0].get(key) for case in cases)
    ]
    return heads, case_text(cases[0], same) if cases else ""


def differing_settings(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings (``section.key``) in which the cases differ."""
    found = [settings if isinstance(settings := case.get("settings"), dict) else {} for case in cases]
    keys = dict.fromkeys(key for settings in found for key in settings)
    return [key for key in keys if len({key_of({"": settings.get(key)}) for settings in found}) > 1]


def _unfolded(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cases with the settings in which they differ as keys of their own."""
    keys = differing_settings(cases)
    unfolded = []
    for case in cases:
        settings = case.get("settings")
        if not keys or not isinstance(settings, dict):
            unfolded.append(dict(case))
            continue
        rest = {key: value for key, value in settings.items() if key not in keys}
        differ = {key: settings[key] for key in keys if key in settings}
        unfolded.append(
            {key: value for key, value in case.items() if key != "settings"} | {"settings": rest} | differ
        )
    return unfolded


def labels_of(case: Mapping[str, Any], keys: Iterable[str]) -> list[Cell]:
    return [Cell(value_text(key, case[key]) if key in case else "") for key in keys]


def rows_table(
    title: str,
    sources: Sequence[Source],
    measures: Sequence[Measure],
    keep: Sequence[str] = (),
) -> Table:
    """A line for each row, whatever its status. Columns without an entry are left out."""
    notes = Notes()
    cases = _unfolded([source.row.case for source in sources])
    keys, same = split_case(cases, keep)
    named = len({source.row.implementation for source in sources}) > 1
    heads = [Column("Implementation", False)] * named + [
        Column(name_of(key).capitalize(), False) for key in keys
    ]
    measures = [*measures, ("Steps", _steps), ("CPU wait, %", _waited)]
    lines = []
    for source, case in zip(sources, cases, strict=True):
        labels = [Cell(source.row.implementation)] * named + labels_of(case, keys)
        lines.append((labels, _numbers(source, measures, notes)))
    filled = [any(cells[place].text for _, cells in lines) for place in range(len(measures))]
    heads += [Column(name) for (name, _), full in zip(measures, filled, strict=True) if full]
    kept = [
        Line((*labels, *(cell for cell, full in zip(cells, filled, strict=True) if full)))
        for labels, cells in lines
    ]
    return Table(title, heads, kept, notes, [f"The same in all: {same}."] if same else [])


def _numbers(source: Source, measures: Sequence[Measure], notes: Notes) -> list[Cell]:
    """The first one is marked with what concerns the whole row."""
    row = source.row
    if not source.ok:
        reason = notes.add(f"{row.status}: {row.reason}")
        return [Cell(row.status, (source,), reason), *[Cell()] * (len(measures) - 1)]
    cells = [cell(source, notes) for _, cell in measures]
    if scaled_down(row):
        marks = notes.add(
            f"scaled down to fit from the case of suite {row.suite}: {changes(row.asked, row.case)}"
        )
        place = next((place for place, cell in enumerate(cells) if cell.text), 0)
        first = cells[place]
        cells[place] = Cell(f"{first.text}*", first.sources, (*first.notes, *marks), first.value)
    return cells


def _steps(source: Source, notes: Notes) -> Cell:
    count = len(source.samples_ms)
    return Cell(f"{count:,}" if count else "", (source,) if count else (), (), count or None)


def _waited(source: Source, notes: Notes) -> Cell:
    waited = number(source.row.cpu_wait_percent)
    if waited is None:
        return Cell()
    return Cell(f"{waited:.1f}", (source,), notes.add(busy([source])), waited)
