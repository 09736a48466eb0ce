"""One's own tables: a line a row for each benchmark and machine, and what seeds say together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev

from megaclass.report.page.casecolumns import Measure, labels_of, rows_table, split_case
from megaclass.report.page.document import Cell, Column, Line, Notes, Section, Table
from megaclass.report.page.machines import Identity, Machine
from megaclass.report.page.measures import latency_ms, ratio_text
from megaclass.report.page.peers import reference_of, spread, times_as_fast
from megaclass.report.page.scaling import scaling_tables
from megaclass.report.page.seeds import trainings, without_seed
from megaclass.report.page.sources import Source
from megaclass.report.page.words import digits, name_of, number

TITLES = {
    "train": "Training",
    "infer": "Inference",
    "head": "Head",
    "loader": "Loader",
    "collectives": "Collectives",
    "stability": "Stability over seeds",
}
KEEP = {
    "train": (
        "recipe",
        "backbone",
        "num_classes",
        "global_batch_size",
        "world_size",
        "precision",
        "sample_rate",
    ),
    "infer": ("backbone", "engine", "precision", "batch_size"),
    "head": ("num_classes", "batch_size", "precision", "storage", "sample_rate", "world_size"),
    "loader": ("workload", "source", "threads"),
    "collectives": ("op", "backend", "world_size", "size_bytes"),
    "stability": ("recipe", "seed"),
}
_STAGES = ("read", "decode", "augment", "assemble", "copy")
SHARES = ("top1", "top5", "pair_accuracy", "one_shot_20way")  # 0..1, published in percent


def own_sections(sources: Sequence[Source], machines: Mapping[Identity, Machine]) -> list[Section]:
    """A section for each benchmark; in it, tables for each machine."""
    sections = []
    for benchmark in [
        *TITLES,
        *dict.fromkeys(s.row.benchmark for s in sources if s.row.benchmark not in TITLES),
    ]:
        tables: list[Table] = []
        for machine in machines.values():
            mine = [s for s in sources if s.row.benchmark == benchmark and s.machine == machine.identity]
            if mine:
                tables += _tables(benchmark, mine, machine.name)
        if tables:
            sections.append(Section(TITLES.get(benchmark, benchmark), tables))
    return sections


def _tables(benchmark: str, sources: list[Source], machine: str) -> list[Table]:
    title = TITLES.get(benchmark, benchmark)
    measures = _MEASURES.get(benchmark, _TIMES)
    if benchmark == "train":
        measures = [*measures, *_company(sources)]
    tables = [rows_table(f"{title}: {machine}", sources, measures, KEEP.get(benchmark, ()))]
    if benchmark == "train":
        tables += scaling_tables(sources, machine)
    if benchmark == "stability":
        tables = [*_seed_tables(sources, machine), *tables]
    return tables


def _value(
    read: Callable[[Source], float | None], show: Callable[[float], str] = digits
) -> Callable[..., Cell]:
    def cell(source: Source, notes: Notes) -> Cell:
        found = read(source)
        return Cell() if found is None else Cell(show(found), (source,), (), found)

    return cell


def _entry(field: str, key: str, factor: float = 1.0) -> Callable[..., Cell]:
    """The entry of a mapping of the row."""

    def read(source: Source) -> float | None:
        found = number(getattr(source.row, field).get(key))
        return None if found is None else factor * found

    return _value(read)


def _company(sources: Sequence[Source]) -> list[Measure]:
    """What the rounds of a training say, and those that took turns with it."""
    rows = {id(source.row): source for source in sources}

    def times(source: Source, notes: Notes) -> Cell:
        mine = reference_of(source.row, [other.row for other in sources])
        ratio = times_as_fast(mine, source.row) if mine else None
        if mine is None or ratio is None:
            return Cell()
        first = rows[id(mine)]
        text = f"how many times as fast row {first.number} ({mine.implementation}) is, by median steps"
        return Cell(ratio_text(ratio), (first, source), notes.add(text), ratio.value)

    apart = _value(lambda source: None if (part := spread(source.row)) is None else 100 * part)
    return [("Spread of rounds, %", apart), ("Ours, times as fast", times)]


def _latency(name: str) -> Measure:
    title = "mean" if name == "mean" else f"{name[1:]}%"
    return f"{title} latency, ms", _value(lambda source: latency_ms(source.row, name))


def _rate(name: str) -> Callable[..., Cell]:
    """A rate of the head beside what part it is of the limit of the machine."""

    def cell(source: Source, notes: Notes) -> Cell:
        work = source.row.work
        rate, limit = number(work.get(f"{name}_per_second")), number(work.get(f"limit_{name}_per_second"))
        if rate is None:
            return Cell()
        return Cell(
            f"{rate / 1e9:,.3g}" + (f" ({rate / limit:.0%})" if limit else ""), (source,), (), rate / 1e9
        )

    return cell


_SPEED = _value(lambda source: number(source.row.samples_per_second))
_MEMORY: list[Measure] = [
    ("GPU memory by the driver, MiB", _entry("memory_mb", "driver")),
    ("reserved, MiB", _entry("memory_mb", "reserved")),
    ("allocated, MiB", _entry("memory_mb", "allocated")),
    ("Process memory, MiB", _entry("memory_mb", "process")),
]
_IPS: list[Measure] = [
    ("Total IPS", _entry("rates", "total")),
    ("Compute IPS", _entry("rates", "compute")),
    ("Data IPS", _entry("rates", "data")),
]
_STEP: list[Measure] = [
    ("Median step, ms", _value(lambda source: latency_ms(source.row, "p50"))),
    ("p99 step, ms", _value(lambda source: latency_ms(source.row, "p99"))),
]
_TIMES: list[Measure] = [*_STEP, ("Samples/s", _SPEED), *_MEMORY]
_MEASURES: dict[str, list[Measure]] = {
    "train": [("Samples/s (median step)", _SPEED), *_IPS, *_STEP, *_MEMORY],
    "infer": [
        ("Throughput, img/s (median step)", _SPEED),
        *_IPS,
        *map(_latency, ("mean", "p50", "p90", "p95", "p99", "p100")),
        *_MEMORY,
    ],
    "head": [
        *_STEP,
        ("Samples/s", _SPEED),
        *_MEMORY,
        ("GFLOP/s (of the limit)", _rate("flops")),
        ("GB/s (of the limit)", _rate("bytes")),
    ],
    "loader": [
        ("Images/s", _SPEED),
        ("Images a CPU second", _entry("work", "samples_per_cpu_second")),
        ("CPU time an image, µs", _entry("work", "cpu_us")),
        *((f"{stage}, µs", _entry("work", f"cpu_us_{stage}")) for stage in _STAGES),
        ("Process memory, MiB", _entry("memory_mb", "process")),
    ],
    "collectives": [
        *_STEP,
        ("Algorithm bandwidth, GB/s", _entry("work", "algorithm_bytes_per_second", 1e-9)),
        ("Bus bandwidth, GB/s", _entry("work", "bus_bytes_per_second", 1e-9)),
    ],
    "stability": [
        *((f"{name}, %", _entry("result", name, 100.0)) for name in SHARES),
        ("auc", _entry("result", "auc")),
        ("Final loss", _entry("result", "final_loss")),
        ("Time to train, s", _entry("result", "seconds")),
        ("Samples/s", _SPEED),
    ],
}  # fmt: skip


def _seed_tables(sources: Iterable[Source], machine: str) -> list[Table]:
    """What the seeds of a case say together, in the shape of the published 50/90/250-epoch table."""
    groups = trainings(source for source in sources if source.ok)
    if not groups:
        return []
    cases = [without_seed(group[-1].row.case) for group in groups]
    keys, same = split_case(cases, ("recipe", "metric"))
    heads = [Column(name_of(key).capitalize(), False) for key in keys]
    heads += map(
        Column, ("Seeds", "Average", "Standard deviation", "Minimum", "Maximum", "Mean time to train, s")
    )
    lines = [
        Line((*labels_of(case, keys), *_statistics(group))) for case, group in zip(cases, groups, strict=True)
    ]
    remarks = [
        "Metrics that are shares are in percent, and so is their standard deviation (of the sample, n - 1). "
        "Of a seed that was trained again the latest counts."
    ]
    remarks += [f"The same in all: {same}."] if same else []
    return [Table(f"Stability, all seeds: {machine}", heads, lines, Notes(), remarks)]


def metric_of(source: Source) -> str:
    """The name of the final metric."""
    others = [name for name in source.row.result if name not in ("final_loss", "seconds")]
    return str(source.row.case.get("metric") or (others or ["final_loss"])[0])


def _statistics(group: Sequence[Source]) -> list[Cell]:
    name = metric_of(group[0])
    factor = 100.0 if name in SHARES else 1.0
    pairs = [(s, factor * v) for s in group if (v := number(s.row.result.get(name))) is not None]
    sources, values = tuple(s for s, _ in pairs), [v for _, v in pairs]
    seconds = [v for s in group if (v := number(s.row.result.get("seconds"))) is not None]
    count = Cell(f"{len(values)}", sources, (), len(values))
    if not values:
        return [count, *[Cell()] * 5]
    spread = stdev(values) if len(values) > 1 else None
    numbers = (fmean(values), spread, min(values), max(values))
    cells = [Cell() if v is None else Cell(f"{v:,.3f}", sources, (), v) for v in numbers]
    time = Cell(digits(fmean(seconds)), sources, (), fmean(seconds)) if seconds else Cell()
    return [count, *cells, time]
