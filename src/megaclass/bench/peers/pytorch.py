"""A plain PyTorch loop: what people write for ImageNet, after pytorch/examples/imagenet with
autocast and channels_last as PyTorch's own recipes have them."""

import importlib
from typing import TYPE_CHECKING, Any

from megaclass.bench.peers.loop import PeerLoop
from megaclass.config import Config, Model

if TYPE_CHECKING:
    from torch import Tensor, nn


class Loop(PeerLoop):
    """Network, cross-entropy, SGD with weight decay on everything, a scaled loss in fp16; the loss is read in every
    step, for the meter that such loops print."""

    channels_last = True

    @classmethod
    def why_not(cls, case: Any, config: Config) -> str:
        if config.head.kind != "linear":
            return "it is a loop for ImageNet, with a linear head"
        if config.augment.mixup or config.augment.cutmix:
            return "its loop mixes no images: set augment.mixup and augment.cutmix to 0"
        if config.head.loss != "softmax":
            return "its loop has the cross-entropy of a softmax: set head.loss to softmax"
        if config.data.accumulation > 1:
            return "its loop takes a batch as a whole: set data.accumulation to 1"
        return super().why_not(case, config)

    def build(self, options: dict[str, Any]) -> None:
        import torch
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel
        from torch.optim.lr_scheduler import LambdaLR

        from megaclass.train import schedule

        case, config, world, plan = self.case, self.config, self.world, self.plan
        network, self._source = _network(case, config, world.device)
        self.model: Any = network.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.train()
        if world.size > 1:
            device_ids = [world.device] if world.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.model, device_ids=device_ids)
        self._criterion = nn.CrossEntropyLoss(label_smoothing=config.head.label_smoothing).to(world.device)
        optim = config.optim
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), plan.base_lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        self._schedule = LambdaLR(self._optimizer, lambda step: schedule.warmup_factor(step, plan.warmup))
        self._autocast = self.arithmetic.autocast
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=self.arithmetic.needs_loss_scale)

    def step(self, images: "Tensor", labels: "Tensor") -> float:
        with self._autocast():
            loss = self._criterion(self.model(images), labels)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        return float(loss.item())

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"network": self._source}


def _network(case: Any, config: Config, device: Any) -> "tuple[nn.Module, str]":
    """torchvision's, where it can be imported and has it; else our backbone and a linear layer; and which."""
    from torch import nn

    from megaclass.train.model import build_model

    usual = all(getattr(config.model, name) == getattr(Model(), name) for name in ("stem", "shortcut", "width"))
    try:
        vision: Any = importlib.import_module("torchvision")
        make = getattr(vision.models, case.backbone, None) if usual else None
    except (ImportError, RuntimeError):  # not there, or made for another PyTorch
        make = None
    if make is not None:
        return make(num_classes=case.num_classes), f"torchvision {vision.__version__}"
    backbone, _ = build_model(config, device)
    return nn.Sequential(backbone, nn.Linear(case.embedding_dim, case.num_classes)), "megaclass"
