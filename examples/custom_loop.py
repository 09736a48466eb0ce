"""megaclass as a library: your own training loop, in one process or several. Takes about ten seconds.

    python examples/custom_loop.py
    torchrun --standalone --nproc-per-node 2 examples/custom_loop.py

Shapes: C = classes, B = images over all ranks, b = images of this rank, D = embedding columns.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR

from megaclass import ArcFace, HeadSGD, PartialFC, build_backbone
from megaclass.parallel import groups as distributed

CLASSES, SIZE, BATCH, STEPS = 200, 16, 64, 200

# A class is a random picture, an image of it that picture under noise: easy to learn, nothing to download.
PICTURES = torch.randn(CLASSES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def images_of(labels_b: Tensor, generator: torch.Generator) -> Tensor:
    pictures = PICTURES[labels_b]
    return pictures + torch.randn(pictures.shape, generator=generator)


def batch_of(step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """This rank's part of the step's global batch, which is the same at any number of ranks."""
    generator = torch.Generator().manual_seed(1 + step)
    labels_B = torch.randint(CLASSES, (BATCH,), generator=generator)
    images_B = images_of(labels_B, generator)
    mine = slice(*distributed.shard_range(BATCH, rank, ranks))
    return images_B[mine], labels_B[mine]


def main(world: distributed.World) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("convnet", image_size=SIZE, width=16, embedding_dim=64)  # or any nn.Module
    model = DistributedDataParallel(backbone) if world.size > 1 else backbone
    # Each rank holds its share of the class centres and scores 30 % of the classes in a step.
    head = PartialFC(CLASSES, embedding_dim=64, margin=ArcFace(0.3, scale=32.0), sample_rate=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    head_optimizer = HeadSGD(head, lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedulers = [CosineAnnealingLR(part, STEPS) for part in (optimizer, head_optimizer)]
    scaler = torch.amp.GradScaler(enabled=False)  # enable it for fp16 under torch.autocast, on a GPU

    for step in range(STEPS):
        images_b, labels_b = batch_of(step, world.rank, world.size)
        loss = head(model(images_b), labels_b)  # the mean over the global batch, the same on every rank
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # the backbone's alone: the head's divides by the loss scale itself
        norm = clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimizer)
        if norm.isfinite():  # else the scaler has skipped the backbone's step, and the head skips it too
            scaler.step(head_optimizer)
        scaler.update()
        for part in (optimizer, head_optimizer):
            part.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
        if world.is_main and (step + 1) % 50 == 0:
            print(f"step {step + 1:3d}   loss {loss.item():7.4f}   lr {schedulers[1].get_last_lr()[0]:.4f}")

    if world.is_main:
        backbone.eval()
        generator = torch.Generator().manual_seed(-1)
        with torch.inference_mode():
            first, again = (backbone(images_of(torch.arange(CLASSES), generator)) for _ in range(2))
        same = cosine_similarity(first, again).mean()
        other = cosine_similarity(first, again.roll(1, 0)).mean()
        print(f"cosine of two new images: {same:.3f} of one class, {other:.3f} of two")


if __name__ == "__main__":
    with distributed.started("cpu") as world:
        main(world)
