"""What part of its roofline bound a measured row of training or inference reaches."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

from megaclass.bench.cost import backbone_cost
from megaclass.bench.infer.cases import InferCase
from megaclass.bench.infer.cases import config_of as infer_config
from megaclass.bench.roofline.bound import Bound, bound
from megaclass.bench.roofline.machines import Peaks
from megaclass.bench.roofline.trace import DATA, FORWARD, WEIGHTS, Bytes, Op
from megaclass.bench.train.cases import TrainCase
from megaclass.bench.train.cases import config_of as train_config
from megaclass.bench.train.cost import head_bytes, is_linear
from megaclass.results.rows import Row

T = TypeVar("T", TrainCase, InferCase)

HEAD = "head"
MEASURED = ("train", "infer")  # the benchmarks whose rows have a bound


@dataclass(frozen=True)
class Reached:
    """bound: of the backbone with its head. seconds: the least for a step; head_seconds: the head's part of them.
    fraction: of that speed, by the median step."""

    row: Row
    bound: Bound
    seconds: float
    head_seconds: float

    @property
    def fraction(self) -> float:
        return 1000 * self.seconds / self.row.step_ms["p50"]


def reached(row: Row, peaks: Peaks) -> Reached | None:
    """For an ``ok`` row of ``train`` or ``infer``; None for others, and for precisions that the machine has no peak
    in."""
    if row.status != "ok" or row.benchmark not in MEASURED:
        return None
    if row.case["precision"] not in peaks.flops_per_second:
        return None
    found = _training(row, peaks) if row.benchmark == "train" else _inference(row, peaks)
    ops = found.fused if row.benchmark == "train" else found.inference
    head = [op for op in ops if op.stage == HEAD]
    return Reached(row, found, found.total(ops).seconds, found.total(head).seconds)


def _training(row: Row, peaks: Peaks) -> Bound:
    case = _case(TrainCase, row)
    config = train_config(case)
    rows = case.global_batch_size // case.ranks
    return bound(config, case.precision, rows, peaks, head=train_head(case))


def train_head(case: TrainCase) -> list[Op]:
    """Of one rank: logits, gradient of the embeddings, gradient of the centres; a margin head computes its logits
    twice. Centres and momentum are read and written once."""
    dim = backbone_cost(train_config(case)).embedding_dim
    linear = is_linear(case)
    # A sharded head scores its part of the classes with the rows of all ranks: as many products either way.
    product = 2.0 * dim * case.num_classes * case.sample_rate
    # Of a linear one the weights are read for two products and the step, and written by it; its gradient is written
    # and read, its momentum read and written: 8 passes over a third of what it holds.
    moved = head_bytes(case) * (8 / 3 if linear else 2 * case.sample_rate)
    directions = [FORWARD, DATA, WEIGHTS] if linear else [FORWARD, DATA, FORWARD, WEIGHTS]
    products = [Op("linear", HEAD, direction, product) for direction in directions]
    return [*products[:-1], replace(products[-1], writes={0: Bytes(step=moved)})]


def _inference(row: Row, peaks: Peaks) -> Bound:
    case = _case(InferCase, row)
    config = infer_config(case)
    columns = backbone_cost(config).embedding_dim
    weights = {0: Bytes(step=4.0 * columns * case.num_classes)}
    scores = [Op("linear", HEAD, FORWARD, 2.0 * columns * case.num_classes, reads=weights)]
    return bound(config, case.precision, case.batch_size, peaks, scores=scores if case.num_classes else [])


def _case(kind: type[T], row: Row) -> T:
    """Without the facts that a row holds besides."""
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in row.case.items() if name in known})
