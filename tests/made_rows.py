"""Rows of no real machine, for tests of reports: plausible in shape, made up in every number."""

import random
from pathlib import Path

from megaclass.results.rows import Row, RowWriter, timed

LAPTOP = {
    "system": "Made-up Laptop 1",
    "cpu": "Testchip(R) 9000 CPU @ 3.00GHz",
    "cpu_cores": 2,
    "cpu_threads": 2,
    "cpu_threads_usable": 2,
    "memory_mb": 16000,
    "gpu": None,
    "gpu_count": 0,
    "os": "Example OS 1.0",
    "kernel": "1.2.3",
    "python": "3.11.7",
    "pytorch": "2.13.0+cpu",
    "revision": "0123456789abcdef0123456789abcdef01234567-dirty",
    "packages": {"numpy": "2.4.6"},
    "variables": {"OMP_NUM_THREADS": "2"},
}
SERVER = LAPTOP | {
    "system": "Made-up Server 8",
    "cpu": "2 x Testchip(R) Server",
    "cpu_cores": 64,
    "cpu_threads": 128,
    "memory_mb": 512000,
    "gpu": "Testcard T1 80GB",
    "gpu_count": 8,
    "gpu_memory_mb": 81920,
    "driver": "999.1",
    "pytorch": "2.13.0+cu130",
    "cuda": "13.0",
    "cudnn": "9.10.2",
    "nccl": "2.27",
}

FACES = {
    "recipe": "faces_r50",
    "backbone": "iresnet50",
    "num_classes": 618_000,
    "embedding_dim": 512,
    "image_size": 112,
    "global_batch_size": 1024,
    "world_size": 8,
    "simulate_ranks": 1,
    "precision": "fp16",
    "tf32": True,
    "sample_rate": 1.0,
    "parallelism": "model",
    "storage": "fp32",
    "data": "synthetic",
    "device": "cuda",
    "threads": 8,
    "seed": 0,
}
PHOTOGRAPHS = {
    "recipe": "resnet50_imagenet",
    "backbone": "resnet50",
    "num_classes": 1000,
    "image_size": 224,
    "global_batch_size": 512,
    "world_size": 1,
    "precision": "fp16",
    "tf32": True,
    "data": "synthetic",
    "device": "cuda",
    "threads": 8,
    "seed": 0,
}
INFER = {
    "recipe": "resnet50_imagenet",
    "backbone": "resnet50",
    "num_classes": 1000,
    "image_size": 224,
    "batch_size": 1,
    "precision": "fp16",
    "tf32": True,
    "engine": "eager",
    "device": "cuda",
    "threads": 8,
    "seed": 0,
}


def row(benchmark, case, step_ms, *, environment=SERVER, steps=20, noise=0.02, seed=0, **fields):
    """An ``ok`` row whose steps scatter by that noise around ``step_ms``."""
    draw = random.Random(seed)
    samples_ms = [round(step_ms * draw.uniform(1 - noise, 1 + noise), 4) for _ in range(steps)]
    batch = case.get("global_batch_size", case.get("batch_size", 1))
    given = {
        "implementation": "megaclass",
        "measured_at": "2026-01-02T03:04:05+00:00",
        "cpu_wait_percent": 1.0,
    }
    return Row(
        benchmark=benchmark,
        case=case,
        status="ok",
        environment=environment,
        **timed(samples_ms, batch),
        **(given | fields),
    )


def lost(benchmark, case, status, reason, *, environment=SERVER, **fields):
    return Row(
        implementation="megaclass",
        benchmark=benchmark,
        case=case,
        status=status,
        reason=reason,
        environment=environment,
        measured_at="2026-01-02T03:04:05+00:00",
        **fields,
    )


def write_rows(path, rows):
    with RowWriter(path) as writer:
        for one in rows:
            writer.write(one)
    return Path(path)


def train_rows():
    """NVIDIA's training table on 1, 4 and 8 cards, a suite scaled down on a laptop, and faces by classes."""
    suite = {"suite": "resnet50-nvidia"}
    rows = [
        row(
            "train",
            PHOTOGRAPHS | {"world_size": n, "global_batch_size": 512 * n, "precision": precision},
            step * (1 + 0.01 * n),
            memory_mb={"allocated": 30_000.0, "reserved": 33_000.0, "driver": 35_000.0, "process": 900.0},
            seed=n,
            **suite,
        )
        for precision, step in (("fp16", 150.0), ("tf32", 460.0))
        for n in (1, 4, 8)
    ]
    small = {"global_batch_size": 8, "precision": "bf16", "device": "cpu", "threads": 2, "world_size": 1}
    rows.append(
        row(
            "train",
            PHOTOGRAPHS | small,
            900.0,
            environment=LAPTOP,
            asked=PHOTOGRAPHS | {"device": "cpu", "threads": 2},
            memory_mb={"allocated": None, "reserved": None, "driver": None, "process": 700.0},
            cpu_wait_percent=31.0,
            **suite,
        )
    )
    for classes, rate in ((125_000, 1.0), (1_000_000, 1.0), (125_000, 0.1), (1_000_000, 0.1)):
        rows.append(
            row(
                "train",
                FACES | {"num_classes": classes, "sample_rate": rate},
                180 + classes * rate / 10_000,
                memory_mb={"driver": 5000.0 + classes / 200, "reserved": 4000.0, "allocated": 3900.0},
                suite="partial-fc-v100",
            )
        )
    rows.append(row("train", FACES, 190.0, suite="arcface-a100", memory_mb={"driver": 10_000.0}))
    huge = FACES | {"global_batch_size": 10_240}
    rows.append(
        lost("train", huge, "oom", "CUDA out of memory: tried to allocate 20 GiB", suite="arcface-a100")
    )
    return rows


def infer_rows():
    rows = []
    for batch in (1, 8, 64, 256):
        for precision, factor in (("fp16", 1.0), ("tf32", 2.0)):
            case = INFER | {"batch_size": batch, "precision": precision}
            rows.append(row("infer", case, factor * (0.7 + batch / 30), noise=0.1, suite="resnet50-nvidia"))
    return rows


def other_rows():
    sizes = [2**power for power in range(10, 27, 4)]
    rows = [
        row(
            "collectives",
            {
                "op": op,
                "size_bytes": size,
                "dtype": "float32",
                "backend": "gloo",
                "world_size": 2,
                "device": "cpu",
            },
            0.05 + size / 1e6,
            environment=LAPTOP,
            work={
                "bytes": size,
                "algorithm_bytes_per_second": size * 1e4,
                "bus_bytes_per_second": size * 1e4,
            },
        )
        for op in ("all_reduce", "all_gather")
        for size in sizes
    ]
    for seed in range(4):
        rows.append(
            row(
                "stability",
                {
                    "recipe": "glyphs",
                    "seed": seed,
                    "settings": {},
                    "metric": "top1",
                    "world_size": 1,
                    "device": "cpu",
                },
                10.0,
                environment=LAPTOP,
                result={"top1": 0.75 + seed / 100, "final_loss": 1.5, "seconds": 100.0 + seed},
            )
        )
    here = {"device": "cpu", "threads": 2}
    rows.append(lost("train", PHOTOGRAPHS | here, "timeout", "no step in 600 s", environment=LAPTOP))
    rows.append(lost("infer", INFER | here, "failed", "killed by SIGKILL", environment=LAPTOP))
    rows.append(lost("train", FACES | here, "skipped", "needs 8 devices, has 0", environment=LAPTOP))
    return rows


def every_row():
    return [*train_rows(), *infer_rows(), *other_rows()]
