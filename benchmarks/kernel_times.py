"""The head on a GPU: ``kernel_times.py ceilings|times|launches|profile``.

ceilings: large products, a large copy. times: of each kernel in a step. launches: steps and nothing else, for ncu.
profile: of a sampled step, and of ResNet-50.
"""

import argparse
import gc
import sys
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from megaclass.bench import timing
from megaclass.bench.case import benchmark_of
from megaclass.bench.flags import counts
from megaclass.bench.head import HeadCase
from megaclass.bench.sweep import resolved
from megaclass.bench.train import TrainCase
from megaclass.parallel.groups import World

CUDA, WARM, TIMED = torch.device("cuda", 0), 2, 5


def ceilings(options: Any) -> None:
    for precision in ("fp32", "tf32", "bf16"):
        print(f"  {precision} {timing.product_flops(precision, timing.LARGE, CUDA) / 1e12:,.2f} TFLOP/s")
    print(f"  copy {timing.copy_bytes_per_second(CUDA) / 1e9:,.0f} GB/s read and written")


def times(options: Any) -> None:
    for rows, storage, rate in product(options.rows, ("fp32", "bf16"), (1.0, 0.1)):
        profiled(head(options, num_classes=rows, storage=storage, sample_rate=rate), 7)


def profile(options: Any) -> None:
    profiled(head(options, sample_rate=0.1), 20)
    size = {"global_batch_size": options.batch // 4, "image_size": options.image_size}
    profiled(TrainCase(**size, precision="bf16", iterations=2, epochs=2 * TIMED, warmup=WARM), 20)


def launches(options: Any) -> None:
    prepared(head(options, sample_rate=0.5))


def head(options: Any, **more: Any) -> HeadCase:
    return HeadCase(**{"num_classes": options.rows[0], "batch_size": options.batch, "precision": "bf16"} | more)


def prepared(case: Any) -> Any:
    """What takes our turns in the case, and has taken ``WARM``."""
    case = resolved(case, "cuda")
    turns = benchmark_of(case).prepare(case, World(0, 1, CUDA), "megaclass", {})
    engine = getattr(getattr(turns, "head", None), "shard", turns)
    print(f"{case.text}; {turns.facts()} {getattr(engine, 'blocks', '')}")
    for index in range(WARM):
        turns.turn(index)
    return turns


def profiled(case: Any, most: int) -> None:
    turns = prepared(case)
    told = [turns.turn(WARM + index) for index in range(TIMED)]
    with torch.profiler.profile() as found:
        for index in range(TIMED):
            turns.turn(WARM + TIMED + index)
    on_gpu = [one for one in found.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]
    ms = {one.key: (one.self_device_time_total / 1000 / TIMED, one.count // TIMED) for one in on_gpu}
    whole = median(one.get("ms") or one["whole_ms"] for one in told)
    print(f"  {whole:.3f} ms a turn, of kernels {sum(ms for ms, _ in ms.values()):.3f} ms")
    for name, (mine, count) in sorted(ms.items(), key=lambda one: -one[1][0])[:most]:
        print(f"    {mine:9.3f} ms in {count} of {name[:100]}", flush=True)
    del turns
    gc.collect()  # head and optimizer know each other
    torch.cuda.empty_cache()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("ceilings", "times", "launches", "profile"))
    parser.add_argument("--rows", type=counts, default=[1_000_000])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--image-size", type=int, default=224)
    found = parser.parse_args()
    globals()[found.part](found)
