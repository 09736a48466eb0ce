"""InsightFace's arcface_torch: its own backbones, losses.py, partial_fc_v2.py and lr_scheduler.py, run unchanged; its
head alone as ``bench head`` measures one, and the loop of its train_v2.py as ``bench train`` does.

Shapes: b = rows of this rank, S = image size.
"""

import importlib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from megaclass.bench.peers.loop import PeerLoop
from megaclass.config import Config, Model
from megaclass.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from megaclass.parallel.groups import World

NAME = "arcface_torch"
_HEAD_FILES = ("partial_fc_v2.py", "losses.py")
_LOOP_FILES = (*_HEAD_FILES, "lr_scheduler.py", "backbones/__init__.py")

# Its names of our backbones.
NETWORKS = {f"iresnet{depth}": f"r{depth}" for depth in (18, 34, 50, 100, 200)}
NETWORKS |= {"mobilefacenet": "mbf", "mobilefacenet_large": "mbf_large"}
NETWORKS |= {name: name for name in NETWORKS.values()}  # which we know too
_IMAGE_SIZE = 112  # its last layers are made for it
_CLIP = 5


def locate(path: str, files: Iterable[str] = _HEAD_FILES) -> Path:
    """The directory with the peer's files: ``path`` itself, or below it as the repository has it."""
    if not path:
        raise UserError(f"--peer {NAME} needs --peer-path: the directory with its code")
    for folder in (Path(path), Path(path) / "recognition" / NAME):
        if all((folder / file).is_file() for file in files):
            return folder.resolve()
    raise UserError(
        f"--peer-path: {path} has no {' and '.join(files)}; give insightface/recognition/{NAME} or the root "
        "of a copy of insightface"
    )


def _precision(case: Any) -> str:
    """On CUDA it has fp16 autocast, which stands against any 16-bit products of ours; on a CPU it computes in fp32."""
    if case.precision not in ("bf16", "fp16"):
        return str(case.precision)
    return "fp16" if case.device == "cuda" else "fp32"


def head_changes(case: Any) -> dict[str, Any]:
    """The case as its head runs it: the same work, its own arithmetic and storage. tf32 is left off, as its training
    script leaves it."""
    if case.margin not in ("arcface", "cosface"):
        raise UserError(f"--margin: {NAME} has no {case.margin}; give it arcface or cosface, or leave the peer out")
    precision = _precision(case) if case.precision != "tf32" else "fp32"
    ours = {"storage": "fp32", "kernels": "torch", "recompute": "auto", "sub_centres": 1}
    return {"precision": precision, **ours}


def head(case: Any, world: "World", sgd: dict[str, float], options: dict[str, Any]) -> tuple[Any, Any]:
    """PartialFC_V2 with torch.optim.SGD, as its train_v2.py puts them together.

    Of a simulated job: a process that is alone holds the first shard of the classes and sees the whole batch; a label
    beyond the shard means to it, as it would there, a class of another rank.
    """
    import torch

    losses, partial_fc = _modules(options["path"], world, "losses", "partial_fc_v2")
    classes = -(-case.num_classes // case.simulate_ranks)
    m2, m3 = (0.5, 0.0) if case.margin == "arcface" else (0.0, 0.4)
    margin, fp16 = losses.CombinedMarginLoss(64, 1.0, m2, m3), case.precision == "fp16"
    made = partial_fc.PartialFC_V2(margin, case.embedding_dim, classes, case.sample_rate, fp16)
    made.train().to(world.device)
    return made, torch.optim.SGD(made.parameters(), **sgd)  # type: ignore[arg-type]


class Loop(PeerLoop):
    """Backbone under DistributedDataParallel and PartialFC_V2 in one SGD, as train_v2.py puts them together: its head
    computes in fp32 whatever the backbone does, and the loss is read in every step."""

    @staticmethod
    def options(path: str) -> dict[str, Any]:
        return {"path": str(locate(path, _LOOP_FILES))}

    @classmethod
    def why_not(cls, case: Any, config: Config) -> str:
        head = config.head
        reasons = {
            "it has no linear head": head.kind != "margin",
            f"it has no such backbone; it has {', '.join(sorted(set(NETWORKS.values())))}": (
                case.backbone not in NETWORKS or config.model.width != Model().width
            ),
            f"its backbones take images of {_IMAGE_SIZE} px": case.image_size != _IMAGE_SIZE,
            "it holds centres and momentum in fp32 on the device": head.storage != "fp32",
            "it has one centre of each class": head.sub_centres > 1,
            "it divides the classes among the ranks": head.parallelism != "model" and case.world_size > 1,
            "its margin is that of ArcFace (m1 1, m3 0) or that of CosFace (m1 1, m2 0)": (
                head.margin != "combined" or head.m1 != 1 or bool(head.m2 and head.m3)
            ),
        }
        return super().why_not(case, config) or next((why for why, true in reasons.items() if true), "")

    @staticmethod
    def changes(case: Any) -> dict[str, Any]:
        """There is no tf32 beside 16-bit products, as in its script."""
        return {"precision": _precision(case), "tf32": False}

    def build(self, options: dict[str, Any]) -> None:
        import torch
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
        from torch.nn.parallel import DistributedDataParallel

        case, config, world = self.case, self.config, self.world
        take_verbose()
        names = ("backbones", "losses", "partial_fc_v2", "lr_scheduler")
        backbones, losses, partial_fc, rates = _modules(options["path"], world, *names)
        self._fp16, head = self.arithmetic.needs_loss_scale, config.head
        backbone = backbones.get_model(
            NETWORKS[case.backbone],
            dropout=config.model.dropout,
            fp16=self._fp16,
            num_features=case.embedding_dim,
        )
        self.backbone = DistributedDataParallel(
            module=backbone.to(world.device),
            broadcast_buffers=False,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            bucket_cap_mb=16,
            find_unused_parameters=True,
        )
        self.backbone.register_comm_hook(None, fp16_compress_hook)
        self.backbone.train()
        self.backbone._set_static_graph()
        threshold = max(0, head.filter_threshold)
        margin = losses.CombinedMarginLoss(head.scale, head.m1, head.m2, head.m3, threshold)
        self.head = partial_fc.PartialFC_V2(margin, case.embedding_dim, case.num_classes, case.sample_rate, False)
        self.head.train().to(world.device)
        groups = [{"params": self.backbone.parameters()}, {"params": self.head.parameters()}]
        optim, plan = config.optim, self.plan
        self._optimizer = torch.optim.SGD(
            groups, lr=plan.base_lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        self._parts = config.data.accumulation  # its rate moves with every micro-batch
        self._schedule = rates.PolynomialLRWarmup(
            optimizer=self._optimizer,
            warmup_iters=plan.warmup * self._parts,
            total_iters=plan.total * self._parts,
        )
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=self._fp16, growth_interval=100)

    def step(self, images: "Tensor", labels: "Tensor") -> float:
        from torch.nn.utils import clip_grad_norm_

        parts = zip(images.chunk(self._parts), labels.chunk(self._parts), strict=True)
        for number, (images_b, labels_b) in enumerate(parts, start=1):
            loss = self.head(self.backbone(images_b), labels_b)
            self._scaler.scale(loss).backward()
            if number == self._parts:
                self._scaler.unscale_(self._optimizer)
                clip_grad_norm_(self.backbone.parameters(), _CLIP)
                self._scaler.step(self._optimizer)
                self._scaler.update()
                self._optimizer.zero_grad()
            self._schedule.step()
            value = float(loss.item())
        return value

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"kernels": "torch"}


def take_verbose() -> None:
    """Let its scheduler give ``verbose`` to PyTorch's, which has dropped it."""
    from torch.optim import lr_scheduler

    class Scheduler(lr_scheduler.LRScheduler):
        def __init__(self, optimizer: Any, last_epoch: int = -1, verbose: bool = False) -> None:
            super().__init__(optimizer, last_epoch)

    lr_scheduler._LRScheduler = Scheduler  # type: ignore[assignment, misc]


def _modules(path: str, world: "World", *names: str) -> list[ModuleType]:
    """Files and packages of the peer's directory, and this process, which is its own, made ready for them: it has a
    process group, and off CUDA calls of ``.cuda()`` do nothing."""
    import torch
    import torch.distributed as dist

    sys.dont_write_bytecode = True  # the user's directory stays as it is
    sys.path.insert(0, path)
    if world.device.type == "cpu":
        torch.Tensor.cuda = lambda self, *args, **options: self  # type: ignore[method-assign]
    # Its autocast is a deprecated one and, off CUDA, switches itself off.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
    if not dist.is_initialized():
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return [importlib.import_module(name) for name in names]
