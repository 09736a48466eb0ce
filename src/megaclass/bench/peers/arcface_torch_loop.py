"""InsightFace's arcface_torch as a contender in training: its backbones, losses.py, partial_fc_v2.py and
lr_scheduler.py, run unchanged, in the loop of its train_v2.py."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import lr_scheduler

from megaclass.bench.peers import arcface_torch
from megaclass.bench.train.cases import TrainCase
from megaclass.bench.train.peer import PeerJob, why_no_peer
from megaclass.config import Config, Model

NAME = arcface_torch.NAME
FILES = (*arcface_torch.FILES, "lr_scheduler.py", "backbones/__init__.py")
CHANNELS_LAST = False  # its loop does not ask for it
# Its names of our backbones.
NETWORKS = {f"iresnet{depth}": f"r{depth}" for depth in (18, 34, 50, 100, 200)}
NETWORKS |= {"mobilefacenet": "mbf", "mobilefacenet_large": "mbf_large"}
NETWORKS |= {name: name for name in NETWORKS.values()}  # which we know too
_IMAGE_SIZE = 112  # its last layers are made for it
_CLIP = 5


def options(path: str) -> dict[str, Any]:
    """What the loop needs to know. UserError: no such files at ``path``."""
    return {"path": str(arcface_torch.locate(path, FILES))}


def why_not(case: TrainCase, config: Config) -> str:
    """Why its loop cannot run the case, or an empty string."""
    head = config.head
    if reason := why_no_peer(case, config):
        return reason
    if head.kind != "margin":
        return "it has no linear head"
    if case.backbone not in NETWORKS or config.model.width != Model().width:
        return f"it has no such backbone; it has {', '.join(sorted(set(NETWORKS.values())))}"
    if case.image_size != _IMAGE_SIZE:
        return f"its backbones take images of {_IMAGE_SIZE} px"
    if head.storage != "fp32":
        return "it holds centres and momentum in fp32 on the device"
    if head.parallelism != "model" and case.world_size > 1:
        return "it divides the classes among the ranks"
    if head.m1 != 1 or (head.m2 and head.m3):
        return "its margin is that of ArcFace (m1 1, m3 0) or that of CosFace (m1 1, m2 0)"
    return ""


def parameters(case: TrainCase) -> dict[str, Any]:
    """Fields of the case that it runs otherwise: on CUDA it has fp16 autocast, which stands against any 16-bit products
    of ours, and no tf32 beside them, as its script leaves it; on a CPU it computes in fp32."""
    half = case.precision in ("bf16", "fp16")
    precision = case.precision if not half else "fp16" if case.device == "cuda" else "fp32"
    return {"precision": precision, "tf32": False}


class Loop:
    """Backbone under DistributedDataParallel and PartialFC_V2 in one SGD, as train_v2.py puts them together: its head
    computes in fp32 whatever the backbone does, and the loss is read in every step."""

    def __init__(self, job: PeerJob, options: dict[str, Any]) -> None:
        case, config, world = job.case, job.config, job.world
        _take_verbose()
        backbones, losses, partial_fc, rates = arcface_torch.modules(
            options["path"], world, ("backbones", "losses", "partial_fc_v2", "lr_scheduler")
        )
        self._fp16, head = job.arithmetic.needs_loss_scale, config.head
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
        margin = losses.CombinedMarginLoss(
            head.scale, head.m1, head.m2, head.m3, max(0, head.filter_threshold)
        )
        self.head = partial_fc.PartialFC_V2(
            margin, case.embedding_dim, case.num_classes, case.sample_rate, False
        )
        self.head.train().to(world.device)
        groups = [{"params": self.backbone.parameters()}, {"params": self.head.parameters()}]
        optim, plan = config.optim, job.steps
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

    def step(self, images: Tensor, labels: Tensor) -> float:
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
        return {"kernels": "torch"}


def _take_verbose() -> None:
    """Let its scheduler give ``verbose`` to PyTorch's, which has dropped it."""

    class Scheduler(lr_scheduler.LRScheduler):
        def __init__(self, optimizer: Any, last_epoch: int = -1, verbose: bool = False) -> None:
            super().__init__(optimizer, last_epoch)

    lr_scheduler._LRScheduler = Scheduler  # type: ignore[assignment, misc]
