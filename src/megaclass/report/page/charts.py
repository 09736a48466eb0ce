"""Which pictures there are: curves of one's own rows, and published ones beside them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaclass.report.page.document import Picture, Series
from megaclass.report.page.machines import Identity, Machine
from megaclass.report.page.measures import latency_ms, memory_mb, throughput
from megaclass.report.page.sources import Source
from megaclass.report.page.words import HOW_OFTEN, key_of, name_of, number, scaled_down, value_text
from megaclass.results.published import Report

_MOST = 8  # curves measured here in a picture, and published ones: beyond, nobody tells them apart
_ALWAYS = ("", "fit", "by")  # told of a curve even where all curves have the same
# Never tell curves apart. Of one device alone there are no collectives, of several they are included.
_ASIDE = (*HOW_OFTEN, "threads", "seed", "rounds", "device", "collectives")


@dataclass(frozen=True)
class Point:
    """owner: the machine, or whose number it is. panel: what a picture is of. params: what its curve is of."""

    owner: str
    published: bool
    panel: str
    params: Mapping[str, Any]
    x: float
    y: float
    when: str = ""
    table: str = ""  # that published it: numbers of two tables are not one curve


@dataclass(frozen=True)
class _Kind:
    """A kind of picture. x: the key of the case. y: read off a row. measure: the same in a published column."""

    title: str
    benchmarks: tuple[str, ...]
    x: str
    x_label: str
    y_label: str
    y: Callable[[Source], Mapping[str, float | None]]
    measures: Mapping[str, str]
    x_base: int = 2
    y_base: int = 0
    ideal: bool = False
    along: tuple[str, ...] = ()  # keys that follow x


def _speed(source: Source) -> dict[str, float | None]:
    return {"": throughput(source.row)}


def _memory(source: Source) -> dict[str, float | None]:
    found, note = memory_mb(source.row)
    return {"memory of the process" if "process" in note else "": found}


def _latencies(source: Source) -> dict[str, float | None]:
    return {name: latency_ms(source.row, name) for name in ("p50", "p99")}


def _bandwidth(source: Source) -> dict[str, float | None]:
    found = number(source.row.work.get("bus_bytes_per_second"))
    return {"": None if found is None else found / 1e9}


_SPEEDS = {"samples_per_second": ""}
_KINDS = (
    _Kind(
        "Scaling", ("train",), "world_size", "devices", "samples/s", _speed, _SPEEDS, 2, 10, True,
        ("global_batch_size",),
    ),
    _Kind(
        "Throughput by batch size", ("infer",), "batch_size", "batch size", "samples/s", _speed, _SPEEDS, 2, 10
    ),
    _Kind(
        "Latency by batch size", ("infer",), "batch_size", "batch size", "latency, ms", _latencies,
        {"latency_p50_ms": "p50", "latency_p99_ms": "p99"}, 2, 10,
    ),
    _Kind(
        "Throughput by global batch size", ("train",), "global_batch_size", "global batch size", "samples/s",
        _speed, _SPEEDS,
    ),
    _Kind(
        "Throughput by number of classes", ("train", "head"), "num_classes", "classes", "samples/s", _speed,
        _SPEEDS, 10, 10,
    ),
    _Kind(
        "Memory by number of classes", ("train", "head"), "num_classes", "classes", "memory, MiB", _memory,
        {"gpu_memory_mb": ""}, 10, 10,
    ),
    _Kind(
        "Bus bandwidth by message size", ("collectives",), "size_bytes", "bytes", "bus bandwidth, GB/s",
        _bandwidth, {}, 2, 10,
    ),
)  # fmt: skip


def pictures(
    sources: Sequence[Source], machines: Mapping[Identity, Machine], reports: Sequence[Report]
) -> list[Picture]:
    """Every picture in which at least one curve of one's own has two points."""
    found: list[Picture] = []
    for kind in _KINDS:
        for benchmark in kind.benchmarks:
            own = list(_own(kind, benchmark, sources, machines))
            points = own + [p for report in reports for p in _published(kind, benchmark, report)]
            for panel in dict.fromkeys(point.panel for point in own):
                found += _panel(kind, panel, [point for point in points if point.panel == panel])
    return found


def _panel(kind: _Kind, panel: str, points: list[Point]) -> Iterator[Picture]:
    """One picture, or several where there are many curves."""
    series = _series(points)
    mine = [one for one in series if not one.published]
    if not mine:
        return
    theirs = [one for one in series if one.published]
    parts = [mine[start : start + _MOST] for start in range(0, len(mine), _MOST)]
    remark = "Logarithmic axes." if kind.y_base else ""
    if len(theirs) > _MOST:
        remark += f" {len(theirs) - _MOST} more published curves are left out."
    for number_of, part in enumerate(parts, start=1):
        title = f"{kind.title}: {panel}" + (f" ({number_of} of {len(parts)})" if len(parts) > 1 else "")
        ideal = [_ideal(one) for one in part] if kind.ideal else []
        yield Picture(
            title,
            kind.x_label,
            kind.y_label,
            [*part, *theirs[:_MOST], *ideal],
            kind.x_base,
            kind.y_base,
            remark,
        )


def _series(points: Sequence[Point]) -> list[Series]:
    """Curves of at least two points, named by whose they are and by what tells them apart."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(key_of({"": [point.owner, point.table, point.params]}), []).append(point)
    curves = {key: _latest(group) for key, group in groups.items()}
    kept = [groups[key] for key, curve in curves.items() if len(curve) > 1]
    keys = dict.fromkeys(key for group in kept for key in group[0].params)
    differ = [
        key
        for key in keys
        if key in _ALWAYS or len({key_of({"": g[0].params[key]}) for g in kept if key in g[0].params}) > 1
    ]
    series = []
    for group in kept:
        first = group[0]
        told = [_told(key, first.params[key]) for key in differ if first.params.get(key) not in (None, "")]
        label = ", ".join([f"published: {first.owner}" if first.published else first.owner, *told])
        series.append(Series(label, _latest(group), first.published))
    return series


def _told(key: str, value: Any) -> str:
    """A name says itself what it is of; a number does not."""
    plain = isinstance(value, str)
    return value if plain else f"{name_of(key)} {value_text(key, value)}"


def _latest(group: Sequence[Point]) -> list[tuple[float, float]]:
    """A value for every x: of what was measured again the latest."""
    return sorted({point.x: point.y for point in sorted(group, key=lambda point: point.when)}.items())


def _ideal(series: Series) -> Series:
    (x0, y0), last = series.points[0], series.points[-1][0]
    return Series("ideal scaling", [(x0, y0), (last, y0 * last / x0)], ideal=True)


def _own(
    kind: _Kind, benchmark: str, sources: Iterable[Source], machines: Mapping[Identity, Machine]
) -> Iterator[Point]:
    for source in sources:
        row = source.row
        x = number(row.case.get(kind.x))
        if row.benchmark != benchmark or not source.ok or not x or x < 0:
            continue
        if kind.ideal and row.case.get("simulate_ranks", 1) != 1:
            continue
        owner = machines[source.machine].name
        params = _params(kind, row.case) | {
            "by": "" if row.implementation == "megaclass" else row.implementation
        }
        params["fit"] = "scaled down to fit" if scaled_down(row) else ""
        for name, y in kind.y(source).items():
            if y:
                yield Point(
                    owner,
                    False,
                    _panel_of(benchmark, row.case),
                    params | {"": name},
                    x,
                    y,
                    str(row.measured_at),
                )


def _published(kind: _Kind, benchmark: str, report: Report) -> Iterator[Point]:
    for table in report.tables:
        if table.benchmark != benchmark:
            continue
        for row in table.rows:
            for cell, column in zip(row.cells, table.columns, strict=True):
                x = number(cell.case.get(kind.x))
                if column.kind != "value" or column.measure not in kind.measures or not x or not cell.value:
                    continue
                y = cell.value * (1024 if column.unit == "GB" else 1)
                params = _params(kind, cell.case) | {"": kind.measures[column.measure]}
                owner = report.machines[cell.machine].title
                yield Point(owner, True, _panel_of(benchmark, cell.case), params, x, y, table=table.title)


def _params(kind: _Kind, case: Mapping[str, Any]) -> dict[str, Any]:
    """What the curve is of: the case without x and what follows it. Weak scaling keeps the batch of a device."""
    params = {key: value for key, value in case.items() if key not in (kind.x, *kind.along, *_ASIDE)}
    batch = number(case.get("global_batch_size"))
    if kind.ideal and batch and number(case.get("world_size")):
        params["batch a device"] = batch / case["world_size"]
    return params


def _panel_of(benchmark: str, case: Mapping[str, Any]) -> str:
    """Numbers of different tasks share no axis."""
    return str(case.get("recipe") or benchmark)
