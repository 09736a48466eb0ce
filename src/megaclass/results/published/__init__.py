"""The numbers that others published, as data: one JSON file a report.

Each file is two things at once: the published tables, every cell verbatim, and the grid of the suite of that name.
Whoever measures reads the cases of it, and whoever reports puts a measured number beside the cell of its case.

A case stands in parts, of the table, the row and the column, of which the later one wins. Where a report gives the
batch size of one device, as NVIDIA's ``-b``, the files say ``batch_size_per_device`` and a case gets the
``global_batch_size`` that follows from it. ``any_settings`` marks a training to an accuracy, where every recipe is
allowed: of its settings those of the model alone are of the case.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaclass.errors import lookup


@dataclass(frozen=True)
class Cell:
    text: str  # as printed, e.g. ``~3670`` or ``Fail``
    value: float | None  # in the unit of its column; None in a column of labels, and where none was published
    case: dict[str, Any]  # all that is told of it, by the names of ``Row.case``; empty in a column of labels
    over: dict[str, Any] | None  # of a ratio, what differs in the other case, which is ``case | over``
    machine: str  # the key of its machine in the report: one for all cells of a line


@dataclass(frozen=True)
class Column:
    title: str
    kind: str  # ``label``; ``value``: the number of the case; ``ratio``: that number over that of the other case
    measure: str = ""  # of the number; of labels the parameter that they state, if it is one
    unit: str = ""  # of the number; a ratio has none
    inverse: bool = False  # a ratio the other way round, as a speed-up of times is
    case: dict[str, Any] = field(default_factory=dict)  # its part of the cases of its cells, as ``over``
    over: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    benchmark: str  # ``train``, ``infer`` or ``stability``
    columns: list[Column]
    rows: list[list[Cell]]  # a cell for each column


@dataclass(frozen=True)
class Machine:
    title: str
    spec: list[list[str]]  # as published: keys and values


@dataclass(frozen=True)
class Report:
    name: str
    title: str
    source: dict[str, str]
    notes: list[str]  # its own remarks, and after ``Ours:`` what we assumed or found odd
    machines: dict[str, Machine]
    tables: list[Table]
    iterations: int = 100  # of an epoch, as it was measured, where it says so

    def cases(self) -> list[tuple[str, dict[str, Any]]]:
        """The distinct (benchmark, case) that measuring its tables takes, in order of appearance; trainings to their
        end are none, as they take days."""
        found: list[tuple[str, dict[str, Any]]] = []
        for table in (table for table in self.tables if table.benchmark != "stability"):
            for cell in (cell for row in table.rows for cell in row if cell.case):
                cases = [cell.case] if cell.over is None else [cell.case, cell.case | cell.over]
                found += [entry for case in cases if (entry := (table.benchmark, case)) not in found]
        return found


def names() -> list[str]:
    """The names of the published reports, which are those of the suites."""
    return sorted(_files())


def load(name: str) -> Report:
    """Return a published report; an unknown name is a :class:`UserError` with the near match."""
    record = json.loads(lookup(_files(), name, "published report").read_text(encoding="utf-8"))
    record["machines"] = {key: Machine(**machine) for key, machine in record["machines"].items()}
    record["tables"] = [_table(table) for table in record["tables"]]
    return Report(**record)


def _files() -> dict[str, Path]:
    return {path.stem: path for path in Path(__file__).parent.glob("*.json")}


def _table(table: dict[str, Any]) -> Table:
    columns = [Column(**column) for column in table["columns"]]
    rows = []
    for row in table["rows"]:
        case, machine = table["case"] | row.get("case", {}), row.get("machine") or table["machine"]
        pairs = zip(row["cells"], columns, strict=True)
        rows.append([_cell(text, column, case, machine) for text, column in pairs])
    return Table(table["name"], table["title"], table["benchmark"], columns, rows)


def _cell(text: str, column: Column, case: dict[str, Any], machine: str) -> Cell:
    if column.kind == "label":
        return Cell(text, None, {}, None, machine)
    case, over = case | column.case, None
    if column.kind == "ratio":
        other = _with_global_batch(case | column.over)
        over = {key: other[key] for key in other if key in column.over or key == "global_batch_size"}
    value = None if text in ("Fail", "-") else float(text.removeprefix("~"))
    return Cell(text, value, _with_global_batch(case), over, machine)


def _with_global_batch(case: dict[str, Any]) -> dict[str, Any]:
    case = dict(case)
    if "batch_size_per_device" in case:
        case["global_batch_size"] = case["world_size"] * case.pop("batch_size_per_device")
    return case
