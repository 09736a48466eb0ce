"""Weak scaling as simulated ranks predict it: the step of one rank, measured, and what it sends, priced.

    t = sum over collectives of (rounds * latency + bytes sent / bandwidth)
    efficiency = T(1) / (T(N) + t - hidden)

with rounds and bytes as rings carry them. Nothing is hidden in the pessimistic
figure; in
the optimistic one the gradients of the backbone travel under its backward pass, which takes two thirds of a step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from megaclass.report.page.words import classes_text
from megaclass.report.roofline import settings_text
from megaclass.report.texttable import TextTable, number
from megaclass.results.rows import Row

BACKWARD = 2 / 3  # of a step, in which gradients of the backbone can travel
BACKBONE = "backbone"


@dataclass(frozen=True)
class Link:
    """Between neighbours of the ring, in each direction. The latency of a round is assumed."""

    name: str
    text: str
    bytes_per_second: float
    latency_s: float

    def seconds(self, work: Mapping[str, float], kind: str) -> float:
        """Of what a row says was sent for ``kind``."""
        rounds, sent = (work.get(f"sent_{what}_{kind}", 0.0) for what in ("rounds", "bytes"))
        return rounds * self.latency_s + sent / self.bytes_per_second


LINKS = {
    link.name: link
    for link in (
        Link("nvlink4", "NVLink 4", 450e9, 3e-6),
        Link("pcie4", "PCIe 4 x16", 32e9, 5e-6),
        Link("400g", "400 Gbit/s", 50e9, 5e-6),
        Link("100g", "100 Gbit/s", 12.5e9, 10e-6),
        Link("25g", "25 Gbit/s", 3.125e9, 30e-6),
        Link("10g", "10 Gbit/s", 1.25e9, 30e-6),
    )
}


@dataclass(frozen=True)
class Prediction:
    """Parts of the speed of one rank times N. ms: what all messages take."""

    ms: float
    pessimistic: float
    optimistic: float


def predict(row: Row, alone: Row, link: Link) -> Prediction:
    """For a row of simulated ranks beside that of one rank with the same work."""
    step, first = (one.step_ms["p50"] for one in (row, alone))
    priced = {kind: 1000 * link.seconds(row.work, kind) for kind in kinds(row)}
    total = sum(priced.values())
    hidden = min(priced.get(BACKBONE, 0.0), BACKWARD * step)
    return Prediction(total, first / (step + total), first / (step + total - hidden))


def kinds(row: Row) -> list[str]:
    return [key.removeprefix("sent_bytes_") for key in row.work if key.startswith("sent_bytes_")]


def weak_scaling(rows: Iterable[Row], links: Sequence[Link]) -> list[TextTable]:
    """A table for each group of rows that differ in the number of simulated ranks and have the same work on each."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.benchmark == "train" and row.status == "ok" and row.case["world_size"] == 1:
            groups.setdefault(_work(row), []).append(row)
    return [sheet for group in groups.values() if (sheet := _sheet(group, links))]


def _work(row: Row) -> str:
    free = {"simulate_ranks", "global_batch_size", "collectives", "threads"}
    alike = {name: value for name, value in row.case.items() if name not in free}
    alike["rows"] = row.case["global_batch_size"] / row.case["simulate_ranks"]
    machine = [row.environment.get(name) for name in ("cpu", "gpu", "pytorch")]
    return str([row.implementation, sorted(alike.items(), key=str), machine])


def _sheet(group: list[Row], links: Sequence[Link]) -> TextTable | None:
    by_ranks = {row.case["simulate_ranks"]: row for row in group}  # the latest of each
    if 1 not in by_ranks or len(by_ranks) == 1:
        return None
    alone = by_ranks[1]
    sent = list(dict.fromkeys(kind for row in by_ranks.values() for kind in kinds(row)))
    lines = []
    for ranks, row in sorted(by_ranks.items()):
        volumes = [number(row.work.get(f"sent_bytes_{kind}", 0.0) / 1e6) for kind in sent]
        parts = [predict(row, alone, link) for link in links]
        predicted = (
            [f"{part.pessimistic:.0%} to {part.optimistic:.0%}" for part in parts] if ranks > 1 else []
        )
        lines.append(
            [str(ranks), number(row.step_ms["p50"]), *volumes, *(predicted or ["100%"] * len(links))]
        )
    case = alone.case
    title = f"{case['backbone']}, {case['image_size']} px, {classes_text(case)}"
    title += f", {case['global_batch_size']:,} images a rank, {case['precision']}"
    if text := settings_text(case):
        title += f", {text}"
    heads = [
        "ranks",
        "step ms",
        *(f"MB {kind.replace('_', '-')}" for kind in sent),
        *(link.text for link in links),
    ]
    return TextTable(title, heads, lines, words=0)
