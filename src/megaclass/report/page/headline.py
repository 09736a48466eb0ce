"""The numbers that a report begins with: each with its hardware, its versions and how often it was taken."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from megaclass.report.compare import OURS
from megaclass.report.page.document import Headline
from megaclass.report.page.machines import Identity, Machine
from megaclass.report.page.measures import busy, throughput
from megaclass.report.page.peers import reference_of, times_as_fast
from megaclass.report.page.seeds import trainings
from megaclass.report.page.sources import Source
from megaclass.report.page.tables import SHARES, TITLES, metric_of
from megaclass.report.page.words import case_text, digits, number, quotient_text, scaled_down
from megaclass.results.rows import Row

# What a reader needs to know of the case of a headline.
_KEYS = (
    "recipe", "backbone", "workload", "source", "op", "num_classes", "global_batch_size", "batch_size", "size_bytes",
    "world_size", "precision", "storage", "sample_rate", "engine", "backend", "settings",
)  # fmt: skip
_USUAL: dict[str, Any] = {"storage": "fp32", "sample_rate": 1.0, "settings": {}}  # not worth a word


def headlines(sources: Sequence[Source], machines: Mapping[Identity, Machine]) -> list[Headline]:
    """For every benchmark and machine the fastest of our rows; of heads that with the most classes."""
    found = []
    for benchmark in TITLES:
        for machine in machines.values():
            mine = [
                source
                for source in sources
                if source.ok and source.row.benchmark == benchmark and source.machine == machine.identity
            ]
            ours = [source for source in mine if source.row.implementation == OURS] or mine
            if ours and (headline := _headline(benchmark, ours, machine.name)):
                found.append(headline)
            if benchmark == "train":
                found += _ratios(mine, machine.name)
    return found


def _ratios(trainings: Sequence[Source], machine: str) -> list[Headline]:
    """For every other implementation how many times as fast ours is, in the case in which ours is fastest."""
    sources = {id(source.row): source for source in trainings}
    rows = [source.row for source in trainings]
    found: dict[str, tuple[float, Row, Row]] = {}
    for other in (row for row in rows if row.implementation != OURS):
        mine = reference_of(other, rows)
        speed = throughput(mine) if mine else None
        if mine and speed and speed > found.get(other.implementation, (0.0,))[0]:
            found[other.implementation] = speed, mine, other
    headlines = []
    for name, (_, mine, other) in found.items():
        if (ratio := times_as_fast(mine, other)) is None:
            continue
        source = sources[id(mine)]
        detail = f"{TITLES['train']} ({ratio.low:.2f} to {ratio.high:.2f}), {mine.case.get('precision')} beside its "
        detail += f"{other.case.get('precision')}: {case_text(_unusual(mine.case), _KEYS)}"
        basis = _basis(source, 1)
        headlines.append(
            Headline(quotient_text(ratio.value), f"times as fast as {name}", detail, machine, basis, source)
        )
    return headlines


def _unusual(case: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key not in _USUAL or _USUAL[key] != value}


def _headline(benchmark: str, ours: Sequence[Source], machine: str) -> Headline | None:
    read, unit = _READ.get(benchmark, (_speed, "samples/s"))
    rated = [(source, value) for source in ours if (value := read(source)) is not None]
    if not rated:
        return None
    # A rank that stands for many counts the samples of those that did not run.
    rated = [pair for pair in rated if _ranks(pair[0]) == 1] or rated
    if benchmark == "head":
        most = max(number(source.row.case.get("num_classes")) or 0 for source, _ in rated)
        rated = [pair for pair in rated if (number(pair[0].row.case.get("num_classes")) or 0) == most]
    rated = [pair for pair in rated if not scaled_down(pair[0].row)] or rated
    best, value = max(rated, key=lambda pair: pair[1])
    if benchmark == "stability":
        return _of_seeds(rated, machine)
    detail = f"{TITLES[benchmark]}: {case_text(_unusual(best.row.case), _KEYS)}"
    if (ranks := _ranks(best)) != 1:  # the others did not run
        value, unit = value / ranks, f"{unit} a rank"
        detail += f", one of {ranks:,.12g} ranks, the others simulated"
    if scaled_down(best.row):
        detail += " (scaled down to fit)"
    return Headline(digits(value), unit, detail, machine, _basis(best, len(rated)), best)


def _of_seeds(rated: Sequence[tuple[Source, float]], machine: str) -> Headline:
    """The mean over the seeds of the case with the most."""
    values = dict(rated)
    group = max(trainings(values), key=len)
    first, name = group[0], metric_of(group[0])
    share = name in SHARES
    mean = fmean(values[source] for source in group) * (100 if share else 1)
    detail = f"{TITLES['stability']}: mean {name}, {case_text(first.row.case, _KEYS)}"
    words = [*_versions(first), f"n = {len(group)} seed{'' if len(group) == 1 else 's'}", busy(group)]
    basis = ", ".join(filter(None, words))
    return Headline(digits(mean), f"% {name}" if share else name, detail, machine, basis, first)


def _versions(source: Source) -> list[str]:
    environment = source.row.environment
    names = (("PyTorch", "pytorch"), ("CUDA", "cuda"), ("revision", "revision"))
    return [f"{name} {_brief(key, environment[key])}" for name, key in names if environment.get(key)]


def _basis(source: Source, rows: int) -> str:
    """Versions, and of how many steps and rows."""
    words = _versions(source)
    steps = len(source.samples_ms)
    words.append(f"n = {steps:,} step{'' if steps == 1 else 's'}" if steps else "n = 1 run")
    if rows > 1:
        words.append(f"the fastest of {rows:,} rows like it")
    return ", ".join(filter(None, [*words, busy([source])]))


def _ranks(source: Source) -> float:
    return number(source.row.case.get("simulate_ranks", 1)) or 1.0


def _brief(key: str, value: object) -> str:
    text = str(value)
    if key == "revision" and len(text) >= 40:
        return text[:9] + ("-dirty" if text.endswith("-dirty") else "")
    return text


def _speed(source: Source) -> float | None:
    return throughput(source.row)


def _bandwidth(source: Source) -> float | None:
    found = number(source.row.work.get("bus_bytes_per_second"))
    return None if found is None else found / 1e9


def _metric(source: Source) -> float | None:
    return number(source.row.result.get(metric_of(source)))


_READ: dict[str, tuple[Callable[[Source], float | None], str]] = {
    "infer": (_speed, "images/s"),
    "loader": (_speed, "images/s"),
    "collectives": (_bandwidth, "GB/s on the bus"),
    "stability": (_metric, ""),
}
