"""What a recipe says in samples and epochs, in steps of its batch: another batch or data set keeps its meaning."""

import math
from dataclasses import dataclass

from megaclass.config.sections import Config


@dataclass(frozen=True)
class Steps:
    """A run of ``total`` optimizer steps with the learning rate ``base_lr`` after the ``warmup``, in the first of which
    the backbone is ``frozen``."""

    total: int
    warmup: int
    between_evaluations: int  # 0: only at the end
    between_checkpoints: int  # 0: only at the end
    base_lr: float
    frozen: int


def steps_of(config: Config, epoch_samples: int) -> Steps:
    """The steps of a run whose training set has ``epoch_samples`` images."""
    schedule, evaluate, size = config.schedule, config.evaluate, config.data.global_batch_size

    def rounded(samples: float) -> int:
        return max(1, round(samples / size))

    total = schedule.steps or rounded(schedule.samples or schedule.epochs * epoch_samples)
    warmup = round(schedule.warmup * total)
    if schedule.warmup_epochs:
        warmup = min(total, rounded(schedule.warmup_epochs * epoch_samples))
    between = rounded(evaluate.every_epochs * epoch_samples) if evaluate.every_epochs else evaluate.every
    frozen = math.ceil(config.optim.freeze_backbone_epochs * epoch_samples / size)
    return Steps(total, warmup, between, config.run.checkpoint_every or between, scaled_lr(config), frozen)


def scaled_lr(config: Config) -> float:
    """The learning rate for the global batch: ``optim.lr`` times its ratio to ``optim.lr_batch_size`` (Goyal et al.
    2017, arXiv:1706.02677, section 2.1), or times the square root of that (Krizhevsky 2014, arXiv:1404.5997, section
    5)."""
    optim = config.optim
    if not optim.lr_batch_size:
        return optim.lr
    ratio = config.data.global_batch_size / optim.lr_batch_size
    return optim.lr * (ratio if optim.lr_scaling == "linear" else math.sqrt(ratio))
