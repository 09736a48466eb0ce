"""What a training step computes, and what the head holds."""

from megaclass.bench.cost import backbone_cost
from megaclass.bench.train.cases import TrainCase, config_of
from megaclass.heads.storage import Storage


def step_flops(case: TrainCase, *, ours: bool = True) -> float:
    """Operations of a whole step of the job: the backward pass of the backbone takes twice its forward pass. A scored
    class takes four products with the rows that its rank sees in our margin head, three in a linear one and in those
    of others."""
    body = backbone_cost(config_of(case))
    scored = case.num_classes * case.sample_rate
    products = 4 if ours and not is_linear(case) else 3
    return case.global_batch_size * (3 * body.flops + 2 * products * body.embedding_dim * scored)


def head_bytes(case: TrainCase) -> float:
    """Of the centres and their optimizer's state on each rank."""
    dim = backbone_cost(config_of(case)).embedding_dim
    if is_linear(case):
        return 3 * 4 * case.num_classes * dim  # weight, gradient, momentum
    storage = Storage.named(case.storage)
    held = case.num_classes / (case.ranks if case.parallelism == "model" else 1)
    return held * (2 if storage.momentum else 1) * dim * storage.dtype.itemsize


def is_linear(case: TrainCase) -> bool:
    """Whether its head is the linear one, which is on every rank."""
    return config_of(case).head.kind == "linear"
