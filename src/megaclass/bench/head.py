"""``megaclass bench head``: whole steps of the head (forward, backward to the embeddings, update), beside a peer's.

Shapes: B = rows of the global batch, b = rows of this rank, D = embedding columns.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from megaclass.bench.case import (
    FLOPS,
    MEMORY,
    OF_LIMIT,
    SPEED,
    Answers,
    Benchmark,
    Case,
    Implementation,
    Metric,
    Turns,
    latency,
    parameter,
    samples_ms,
    share_of_limit,
    value_of,
)
from megaclass.bench.peers import arcface_torch, implementation, peer_flags, peers_asked
from megaclass.bench.timing import beside_limits, measure, product_flops, time_ms
from megaclass.errors import UserError, lookup
from megaclass.results.rows import timed

if TYPE_CHECKING:
    from torch import Tensor

    from megaclass.parallel.groups import World

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4


@dataclass(frozen=True, kw_only=True)
class RanksCase(Case):
    """A job of ``world_size`` ranks, or one process that does the share of one of ``simulate_ranks``: classes and batch
    (``samples``) are those of the whole job."""

    world_size: int = parameter(
        1,
        "devices, a process each; on a CPU processes that share its cores",
        sweeps=True,
        flags=("-n", "--world-size", "--ngpus"),
        low=1,
        title="devices",
    )
    simulate_ranks: int = parameter(
        1,
        "one process does the share of one rank of N: 1/N of the classes and the batch",
        sweeps=True,
        low=1,
        title="simulated ranks",
    )

    @property
    def ranks(self) -> int:
        """Among how many the batch and the classes are divided."""
        return self.world_size * self.simulate_ranks

    def check(self) -> None:
        super().check()
        if self.world_size > 1 and self.simulate_ranks > 1:
            raise UserError("--simulate-ranks stands for the other ranks: it goes with one process (-n 1)")

    def why_skipped(self, gpus: int) -> str:
        case: Any = self
        if case.samples % self.ranks:
            return f"a batch of {case.samples} does not divide into {self.ranks} ranks"
        if case.device == "cpu" and (case.precision == "tf32" or getattr(case, "tf32", False)):
            return "tf32 exists on CUDA only"
        return super().why_skipped(gpus)


@dataclass(frozen=True, kw_only=True)
class HeadCase(RanksCase):
    """One measurement of a head."""

    num_classes: int = parameter(
        100_000, "classes of the whole job; K, M and B are understood", sweeps=True, low=1, title="classes"
    )
    embedding_dim: int = parameter(512, "columns of an embedding", sweeps=True, low=1)
    batch_size: int = parameter(
        128, "rows of the global batch: what every shard sees", sweeps=True, low=1, title="batch"
    )
    sub_centres: int = parameter(
        1, "centres of each class, the nearest counts", sweeps=True, low=1, high=16, title="sub-centres"
    )
    sample_rate: float = parameter(1.0, "fraction of the classes scored in a step", sweeps=True, title="rate")
    precision: str = parameter(
        "fp32", "operands of products: fp32, tf32 or bf16", sweeps=True, choices=("fp32", "tf32", "bf16")
    )
    storage: str = parameter(
        "fp32",
        "centres and momentum: fp32, bf16, or int8_rowwise, which has no momentum",
        sweeps=True,
        choices=("fp32", "bf16", "int8_rowwise"),
    )
    margin: str = parameter("arcface", "as of head.margin", sweeps=True)
    kernels: str = parameter("auto", "auto, triton or torch", choices=("auto", "triton", "torch"))
    recompute: str = parameter(
        "auto",
        "exponentials computed again in pass 2: auto, always or never",
        sweeps=True,
        choices=("auto", "always", "never"),
    )
    device: str = parameter("auto", "auto, cpu or cuda")
    threads: int = parameter(0, "of each process on a CPU; 0: its share of the cores", low=0)
    steps: int = parameter(20, "timed steps", low=1, effort=True)
    warmup: int = parameter(3, "steps before them that are not timed", low=0, effort=True)
    seed: int = parameter(0, "of embeddings, labels and centres", low=0)

    @property
    def samples(self) -> int:
        return self.batch_size

    def parameters(self) -> dict[str, Any]:
        return asdict(self) | {"collectives": "none" if self.simulate_ranks > 1 else "included"}

    def check(self) -> None:
        from megaclass.heads.margins import MARGINS

        super().check()
        lookup(MARGINS, self.margin, "margin")
        if not 0 < self.sample_rate <= 1:
            raise UserError(f"--sample-rate: {self.sample_rate} is outside (0, 1]")


class Steps(Turns):
    """A head and its optimizer at work. The inputs of a step are a function of seed and step, so that all
    implementations and ranks agree on them."""

    def __init__(self, case: HeadCase, world: "World", name: str, options: dict[str, Any]) -> None:
        self._case, self._device = case, world.device
        rows = case.batch_size // (case.ranks if name == "megaclass" else case.world_size)
        self._mine = slice(world.rank * rows, (world.rank + 1) * rows)
        self._whole: tuple[Tensor, Tensor]  # what all ranks bring to this step: unit embeddings, labels
        sgd = {"lr": LEARNING_RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
        if name == arcface_torch.NAME:
            self.head, self._optimizer = arcface_torch.head(case, world, sgd, options)
        else:
            self.head, self._optimizer = self._ours(sgd)

    def _ours(self, sgd: dict[str, float]) -> tuple[Any, Any]:
        """PartialFC with HeadSGD, as this rank of a job or as rank 0 of a simulated one."""
        import torch

        from megaclass.heads.margins import build_margin
        from megaclass.heads.partial_fc import PartialFC
        from megaclass.heads.sgd import HeadSGD
        from megaclass.parallel.groups import Simulated

        case = self._case
        head = PartialFC(
            case.num_classes,
            case.embedding_dim,
            margin=build_margin(case.margin, "", lambda: torch.arange(case.num_classes) % 50 / 100),
            sub_centres=case.sub_centres,
            sample_rate=case.sample_rate,
            precision=case.precision,
            seed=case.seed,
            device=self._device,
            storage=case.storage,
            kernels=case.kernels,
            recompute=case.recompute,
            group=Simulated(case.simulate_ranks, self._gathered) if case.simulate_ranks > 1 else None,
        )
        return head, HeadSGD(head, **sgd)

    def _gathered(self, tensor_b: "Tensor") -> "Tensor":
        """This rank's rows and then those of the simulated ones: labels where it brings labels."""
        import torch

        embeddings_BD, labels_B = self._whole
        whole = embeddings_BD if tensor_b.is_floating_point() else labels_B
        if tensor_b.dim() == 1 and tensor_b.is_floating_point():  # norms
            whole = torch.linalg.vector_norm(whole, dim=1)
        return torch.cat([tensor_b, whole[len(tensor_b) :]])

    def turn(self, index: int) -> dict[str, Any]:
        from megaclass.parallel import groups

        self._draw(index)
        groups.barrier()
        ms, loss_tensor = time_ms(self._device, self._step)
        loss = float(loss_tensor)
        if not math.isfinite(loss):  # a head may skip the update then: not the same work
            raise ArithmeticError(f"the loss of step {index} is {loss}")
        return {"ms": ms, "loss": loss}

    def _draw(self, step: int) -> None:
        """Embeddings (B, D) fp32 and labels (B,) int64, uniform over all classes."""
        import torch
        from torch.nn.functional import normalize

        from megaclass.parallel.seeding import derive_key

        case = self._case
        generator = torch.Generator().manual_seed(derive_key("bench", case.seed, step))
        embeddings_BD = torch.randn(case.batch_size, case.embedding_dim, generator=generator)
        labels_B = torch.randint(case.num_classes, (case.batch_size,), generator=generator)
        embeddings_BD, labels_B = embeddings_BD.to(self._device), labels_B.to(self._device)
        self._whole = normalize(embeddings_BD), labels_B
        self._embeddings_bD = embeddings_BD[self._mine].clone().requires_grad_()
        self._labels_b = labels_B[self._mine].clone()

    def _step(self) -> "Tensor":
        """The timed region: forward, backward to the embeddings, update."""
        loss: Tensor = self.head(self._embeddings_bD, self._labels_b)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def facts(self) -> dict[str, Any]:
        shard = getattr(self.head, "shard", None)
        return {"kernels": shard.engine.name if shard else "torch"}


def work(name: str, case: HeadCase) -> dict[str, float]:
    """Operations and bytes of a step over all measured processes.

    A scored centre takes four products of 2 B D operations: logits and embedding gradient in pass 1, logits and centre
    gradient in pass 2; arcface_torch's takes three. The least that must move: our pass 1 reads a scored centre, pass 2
    reads and writes it and its momentum. arcface_torch reads each scored centre twice for its products; and of every
    class the gradient is written and read, centre and momentum are read and written.
    """
    from megaclass.heads.storage import Storage

    storage = Storage.named(case.storage)
    held = case.num_classes * case.sub_centres / case.simulate_ranks
    scored = held * case.sample_rate
    products, rows = 4, (5 if storage.momentum else 3) * scored
    if name == arcface_torch.NAME:
        products, rows = 3, 2 * scored + 6 * held
    return {
        "flops": 2 * products * case.batch_size * case.embedding_dim * scored,
        "bytes": storage.dtype.itemsize * case.embedding_dim * rows,
    }


def measures(name: str, case: HeadCase, turns: Answers, limits: list[dict[str, float]]) -> dict[str, Any]:
    timing, amounts = timed(samples_ms(turns), case.batch_size), work(name, case)
    return timing | {"work": beside_limits(amounts, timing["step_ms"]["p50"], limits)}


def libraries(case: Any, world: "World") -> None:
    """A small product, its derivative and an optimizer's step: what PyTorch loads when it first needs it (its compiler
    for every optimizer: 80 MB) is no memory of a head."""
    import torch

    a = torch.nn.Parameter(torch.randn(64, 64, device=world.device))
    (a @ a).exp().sum().backward()
    torch.optim.SGD([a], 0.1, momentum=0.9).step()
    product_flops(case.precision, 64, world.device)


def implementations(case: HeadCase, options: Any) -> list[Implementation]:
    """Ours, and the peer if one is asked for."""
    found = [Implementation()]
    for name in peers_asked(options, [arcface_torch.NAME]):
        path, changes = arcface_torch.locate(options.peer_path), arcface_torch.head_changes(case)
        found.append(implementation(name, case, changes=changes, options={"path": str(path)}))
    return found


METRICS = (
    latency("p50", "Median step, ms"),
    latency("p99", "p99 step, ms"),
    SPEED,
    MEMORY,
    FLOPS,
    OF_LIMIT,
    Metric("bytes_per_second", "GB/s", value_of("work", "bytes_per_second", 1e-9), "higher"),
    Metric("bytes_share", "GB/s of limit, %", share_of_limit("bytes"), "higher"),
)

BENCHMARK = Benchmark(
    "head",
    "Head",
    "whole steps of the head, beside arcface_torch's",
    HeadCase,
    METRICS,
    "samples_per_second",
    prepare=Steps,
    measures=measures,
    libraries=libraries,
    limits=measure,
    flags=lambda parser: peer_flags(parser, [arcface_torch.NAME]),
    implementations=implementations,
)
