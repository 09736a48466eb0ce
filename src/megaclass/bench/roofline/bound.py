"""How fast a backbone could train and run on a machine at most, by what its layers compute and move.

The roofline model (Williams, Waterman and Patterson 2009): a layer takes at least the time of its operations at the
machine's peak, and at least that of its traffic at the machine's bandwidth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megaclass.bench.roofline.fusing import fused
from megaclass.bench.roofline.machines import Peaks
from megaclass.bench.roofline.trace import DATA, FORWARD, ITEM_BYTES, WEIGHTS, Bytes, Op, trace
from megaclass.config import Config

OPTIMIZER = "optimizer"
# fp32 weight, gradient and momentum are read, weight and momentum written.
_OPTIMIZER_BYTES = 5 * 4
PRODUCTS = ("conv", "linear")


@dataclass(frozen=True)
class Share:
    """Of a stage, a kind of layer or a whole network. flops: by direction, of an image. bytes: of a step. seconds: the
    least for a step, of which ``memory_seconds`` are of layers that memory holds up."""

    name: str
    flops: dict[str, float]
    bytes: float
    seconds: float
    memory_seconds: float

    @property
    def all_flops(self) -> float:
        return sum(self.flops.values())


@dataclass(frozen=True)
class Bound:
    """What a step of ``batch`` images takes at least. unfused: every operator reads its inputs and writes its outputs
    once. fused: norms, activations and sums are one pass. inference: the forward pass, with that pass part of the
    products. plain_seconds: of all layers (fused) as if they were one, whose operations hide all traffic or the other
    way round."""

    backbone: str
    image_size: int
    precision: str
    batch: int
    peaks: Peaks
    unfused: list[Op]
    fused: list[Op]
    inference: list[Op]

    def total(self, ops: Sequence[Op], name: str = "total") -> Share:
        seconds = [self._seconds(op) for op in ops]
        return Share(
            name,
            {d: sum(op.flops for op in ops if op.direction == d) for d in (FORWARD, DATA, WEIGHTS)},
            sum(self._bytes(op) for op in ops),
            sum(max(both) for both in seconds),
            sum(memory for compute, memory in seconds if memory > compute),
        )

    def by(self, what: str, ops: Sequence[Op]) -> list[Share]:
        """By ``stage`` or by ``kind``, in the order of the network."""
        names = list(dict.fromkeys(getattr(op, what) for op in ops))
        return [self.total([op for op in ops if getattr(op, what) == name], name) for name in names]

    @property
    def plain_seconds(self) -> float:
        total = self.total(self.fused)
        compute = total.all_flops * self.batch / self.peaks.flops(self.precision)
        return max(compute, total.bytes / self.peaks.bytes_per_second)

    def _bytes(self, op: Op) -> float:
        return op.moved.image * self.batch + op.moved.step

    def _seconds(self, op: Op) -> tuple[float, float]:
        compute = op.flops * self.batch / self.peaks.flops(self.precision)
        return compute, self._bytes(op) / self.peaks.bytes_per_second


def bound(
    config: Config,
    precision: str,
    batch: int,
    peaks: Peaks,
    head: Sequence[Op] = (),
    scores: Sequence[Op] = (),
) -> Bound:
    """Of the backbone of ``config``, its optimizer, and a ``head`` in training, ``scores`` in inference."""
    peaks.flops(precision)
    ops = trace(config, precision)
    gradients = [size.step for op in ops if op.is_backward for size in op.writes.values()]
    parameters = sum(gradients) / 4
    update = Op(OPTIMIZER, OPTIMIZER, WEIGHTS, reads={0: Bytes(step=_OPTIMIZER_BYTES * parameters)})
    after = [*head, update]
    return Bound(
        backbone=config.model.name,
        image_size=config.data.image_size,
        precision=precision,
        batch=batch,
        peaks=peaks,
        unfused=[*ops, *after],
        fused=[*fused(ops), *after],
        inference=[*_inference(ops, precision), *scores],
    )


def _inference(ops: Sequence[Op], precision: str) -> list[Op]:
    """The forward pass of a model whose weights were cast to the precision before."""
    part = ITEM_BYTES[precision] / 4

    def cast(sizes: dict[int, Bytes]) -> dict[int, Bytes]:
        return {value: Bytes(size.image, size.step * part) for value, size in sizes.items()}

    forward = fused([op for op in ops if op.direction == FORWARD], into=PRODUCTS)
    return [replace(op, reads=cast(op.reads), writes=cast(op.writes)) for op in forward]
