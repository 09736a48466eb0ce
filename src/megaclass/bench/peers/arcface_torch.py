"""InsightFace's arcface_torch as a contender: its own partial_fc_v2.py and losses.py, run unchanged.

Shapes: B = rows of the global batch, b = rows of this rank, D = embedding columns.
"""

import importlib.util
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megaclass.bench.head.cases import HeadCase
from megaclass.bench.head.contender import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Inputs, classes_of_process
from megaclass.errors import UserError
from megaclass.parallel.groups import World

NAME = "arcface_torch"
FILES = ("partial_fc_v2.py", "losses.py")

# glibc gives large blocks back to the kernel when they are freed, and every step faults their pages in again.
# Told to keep them, the peer runs about twice as fast on a CPU.
TUNED: dict[str, str | None] = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
MALLOC: dict[str, dict[str, str | None]] = {"tuned": TUNED, "untuned": dict.fromkeys(TUNED)}


def locate(path: str, files: Sequence[str] = FILES) -> Path:
    """The directory with the peer's files: ``path`` itself, or below it as the repository has it."""
    for folder in (Path(path), Path(path) / "recognition" / NAME):
        if all((folder / file).is_file() for file in files):
            return folder.resolve()
    raise UserError(
        f"--peer-path: {path} has no {' and '.join(files)}; give insightface/recognition/{NAME} or the root "
        "of a copy of insightface"
    )


def parameters(case: HeadCase) -> dict[str, Any]:
    """The case as the peer runs it: the same work, its own arithmetic and storage.

    Its products are fp32 on a CPU. On CUDA it has fp16 autocast, which stands against any 16-bit products of
    ours; tf32 is left off, as its training script leaves it.
    """
    half = case.device == "cuda" and case.precision in ("bf16", "fp16")
    return {
        "precision": "fp16" if half else "fp32",
        "storage": "fp32",
        "kernels": "torch",
    }


class ArcfaceTorch:
    """PartialFC_V2 with torch.optim.SGD, as its train_v2.py puts them together."""

    def __init__(self, case: HeadCase, world: World, options: dict[str, Any]) -> None:
        losses, partial_fc = modules(options["path"], world, ("losses", "partial_fc_v2"))

        # One rank of a simulated job: a process that is alone holds the first shard of the classes and sees
        # the whole batch; a label beyond the shard means to it, as it would there, a class of another rank.
        rows = case.batch_size // case.world_size
        self._mine = slice(world.rank * rows, (world.rank + 1) * rows)
        self._inputs = Inputs(case, world.device)
        classes = -(-case.num_classes // case.simulate_ranks)
        arc = case.margin == "arcface"
        margin = losses.CombinedMarginLoss(64, 1.0, 0.5 if arc else 0.0, 0.0 if arc else 0.4)
        self.head = partial_fc.PartialFC_V2(
            margin, case.embedding_dim, classes, case.sample_rate, case.precision == "fp16"
        )
        self.head.train().to(world.device)
        self._optimizer = torch.optim.SGD(
            self.head.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def prepare(self, step: int) -> None:
        embeddings_BD, labels_B = self._inputs.of_step(step)
        self._embeddings_bD = embeddings_BD[self._mine].clone().requires_grad_()
        self._labels_b = labels_B[self._mine].clone()

    def step(self) -> Tensor:
        loss: Tensor = self.head(self._embeddings_bD, self._labels_b)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def facts(self) -> dict[str, Any]:
        return {}


def work(case: HeadCase) -> dict[str, float]:
    """Operations and bytes of a step over all measured processes.

    A scored class takes 6 B D operations: three products of 2 B D, logits and two gradients. The least that
    its formulation must move, in fp32 rows: two reads of each scored centre for the products; and of every class
    the gradient is written and read, centre and momentum are read and written.
    """
    held, scored = classes_of_process(case)
    return {
        "flops": 6 * case.batch_size * case.embedding_dim * scored,
        "bytes": 4 * case.embedding_dim * (2 * scored + 6 * held),
    }


def modules(path: str, world: World, names: Iterable[str]) -> list[ModuleType]:
    """Files and packages of the peer's directory, and this process made ready for them: it has a process group, and
    off CUDA calls of ``.cuda()`` do nothing."""
    folder = Path(path)
    sys.dont_write_bytecode = True  # the user's directory stays as it is
    sys.path.append(str(folder))
    if world.device.type == "cpu":
        torch.Tensor.cuda = lambda self, *args, **options: self  # type: ignore[method-assign]
    # Its autocast is a deprecated one and, off CUDA, switches itself off.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
    if not dist.is_initialized():
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return [_load(folder, name) for name in names]


def _load(folder: Path, name: str) -> ModuleType:
    package = folder / name
    file = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"{NAME}_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the relative imports of a package look for it
    spec.loader.exec_module(module)
    return module
