"""Ten million classes in the memory of a small machine: does the head fit, and does it learn?

    python benchmarks/large_head.py --num-classes 10000000 --storage bf16 --sample-rate 0.01 --steps 300

An identity is a fixed random direction; its samples are that direction under noise, seen through a linear
backbone that is trained along. A step brings identities from a pool of ``--identities``, spread over all
classes, so that each comes back often enough to be learned within the run; all the other classes are there
as negatives, and are what has to fit. Appends one JSON line: losses, time and peak memory.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from megaclass import ArcFace, HeadSGD, PartialFC
from megaclass.parallel.seeding import KeyedPermutation
from megaclass.results.machine import snapshot

GIB = 2**20  # ru_maxrss is in KiB on Linux


def samples(labels_B: Tensor, dim: int, noise: float, generator: torch.Generator) -> Tensor:
    """Each identity's direction under noise, (B, D)."""
    rows = []
    for label in labels_B.tolist():
        own = torch.Generator().manual_seed(label)
        rows.append(torch.randn(dim, generator=own))
    return torch.stack(rows) + noise * torch.randn(len(rows), dim, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-classes", type=int, default=10_000_000)
    parser.add_argument("--embedding-dim", type=int, default=512)
    parser.add_argument("--sample-rate", type=float, default=0.01)
    parser.add_argument("--storage", default="bf16")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--identities", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    began = time.perf_counter()
    dim = arguments.embedding_dim
    backbone = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim))
    head = PartialFC(
        arguments.num_classes,
        dim,
        margin=ArcFace(),
        sample_rate=arguments.sample_rate,
        storage=arguments.storage,
        precision="bf16",
    )
    head_optimizer = HeadSGD(head, lr=arguments.lr)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=arguments.lr, momentum=0.9, weight_decay=5e-4)
    made_s = time.perf_counter() - began

    generator = torch.Generator().manual_seed(1)
    pool = KeyedPermutation(arguments.num_classes, key=7)(torch.arange(arguments.identities))
    losses, step_ms = [], []
    for step in range(arguments.steps):
        labels = pool[torch.randint(len(pool), (arguments.batch_size,), generator=generator)]
        images = samples(labels, dim, arguments.noise, generator)
        began = time.perf_counter()
        loss = head(backbone(images), labels)
        loss.backward()
        head_optimizer.step()
        optimizer.step()
        optimizer.zero_grad()
        step_ms.append(1000 * (time.perf_counter() - began))
        losses.append(loss.item())
        if step % 20 == 0 or step == arguments.steps - 1:
            print(f"step {step:4d}   loss {losses[-1]:8.4f}   {step_ms[-1]:6.0f} ms", flush=True)

    row = {
        "benchmark": "large_head",
        "case": {key: value for key, value in vars(arguments).items() if key != "output"},
        "losses": [round(loss, 4) for loss in losses],
        "samples_ms": [round(ms, 2) for ms in step_ms],
        "seconds_to_make": round(made_s, 1),
        "peak_process_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB, 2),
        "environment": snapshot(),
    }
    print(f"peak memory {row['peak_process_gib']} GiB, loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    if arguments.output:
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
