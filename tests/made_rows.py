"""Rows of no real machine, for tests of reports: plausible in shape, made up in every number; and documents of them."""

import random
from pathlib import Path

from megaclass.report.build import build
from megaclass.report.sources import read_sources
from megaclass.results import published
from megaclass.results.rows import Row, RowWriter, timed

LAPTOP = {
    "system": "Made-up Laptop 1", "cpu": "Testchip(R) 9000 CPU @ 3.00GHz", "cpu_cores": 2, "cpu_threads": 2,
    "cpu_threads_usable": 2, "memory_mb": 16000, "gpu": None, "gpu_count": 0, "os": "Example OS 1.0",
    "kernel": "1.2.3", "python": "3.11.7", "pytorch": "2.13.0+cpu", "packages": {"numpy": "2.4.6"},
    "revision": "0123456789abcdef0123456789abcdef01234567-dirty", "variables": {"OMP_NUM_THREADS": "2"},
}  # fmt: skip
SERVER = LAPTOP | {
    "system": "Made-up Server 8", "cpu": "2 x Testchip(R) Server", "cpu_cores": 64, "cpu_threads": 128,
    "memory_mb": 512000, "gpu": "Testcard T1 80GB", "gpu_count": 8, "gpu_memory_mb": 81920, "driver": "999.1",
    "pytorch": "2.13.0+cu130", "cuda": "13.0", "cudnn": "9.10.2", "nccl": "2.27",
}  # fmt: skip

SHARED = {"precision": "fp16", "tf32": True, "device": "cuda", "threads": 8, "seed": 0}
PHOTOGRAPHS = SHARED | {
    "recipe": "resnet50_imagenet", "backbone": "resnet50", "num_classes": 1000, "image_size": 224,
    "global_batch_size": 512, "world_size": 1, "data": "synthetic",
}  # fmt: skip
INFER = SHARED | {
    "recipe": "resnet50_imagenet", "backbone": "resnet50", "num_classes": 1000, "image_size": 224, "batch_size": 1,
    "engine": "eager",
}  # fmt: skip
FACES = SHARED | {
    "recipe": "faces_r50", "backbone": "iresnet50", "num_classes": 618_000, "embedding_dim": 512, "image_size": 112,
    "global_batch_size": 1024, "world_size": 8, "simulate_ranks": 1, "sample_rate": 1.0, "parallelism": "model",
    "storage": "fp32", "data": "synthetic",
}  # fmt: skip
_SHARED_FIELDS = {"implementation": "megaclass", "measured_at": "2026-01-02T03:04:05+00:00"}


def row(benchmark, case, step_ms, *, environment=SERVER, steps=20, noise=0.02, seed=0, **fields):
    """An ``ok`` row whose steps scatter by that noise around ``step_ms``."""
    draw = random.Random(seed)
    samples_ms = [round(step_ms * draw.uniform(1 - noise, 1 + noise), 4) for _ in range(steps)]
    made = timed(samples_ms, case.get("global_batch_size", case.get("batch_size", 1)))
    made |= {"benchmark": benchmark, "case": case, "status": "ok", "environment": environment}
    return Row(**_SHARED_FIELDS | {"cpu_wait_percent": 1.0} | made | fields)


def lost(benchmark, case, status, reason, *, environment=SERVER, **fields):
    made = {"benchmark": benchmark, "case": case, "status": status, "reason": reason}
    return Row(**_SHARED_FIELDS | made | {"environment": environment} | fields)


def every_row():
    """NVIDIA's tables on 1, 4 and 8 cards, a suite scaled down on a laptop, faces by classes, and each other status."""
    rows = []
    for precision, step in (("fp16", 150.0), ("tf32", 460.0)):
        for n in (1, 4, 8):
            case = PHOTOGRAPHS | {"world_size": n, "global_batch_size": 512 * n, "precision": precision}
            memory = {"driver": 35_000.0, "reserved": 33_000.0}
            rows.append(row("train", case, step + n, memory_mb=memory, seed=n, suite="resnet50-nvidia"))
        for batch in (1, 8, 64, 256):
            case = INFER | {"batch_size": batch, "precision": precision}
            rows.append(row("infer", case, step * (1 + batch / 20) / 200, noise=0.1, suite="resnet50-nvidia"))
    here = {"device": "cpu", "threads": 2}
    small = PHOTOGRAPHS | here | {"global_batch_size": 8, "precision": "bf16"}
    scaled = {"asked": PHOTOGRAPHS | here, "suite": "resnet50-nvidia", "memory_mb": {"process": 700.0}}
    rows.append(row("train", small, 900.0, environment=LAPTOP, cpu_wait_percent=31.0, **scaled))
    for classes in (125_000, 500_000, 1_000_000):
        for rate in (1.0, 0.1):
            case = FACES | {"num_classes": classes, "sample_rate": rate}
            memory = {"driver": 5000.0 + classes / 200}
            rows.append(row("train", case, 180 + classes * rate / 1e4, memory_mb=memory, suite="partial-fc-v100"))
    rows.append(row("train", FACES, 190.0, suite="arcface-a100", memory_mb={"driver": 10_000.0}))
    huge = FACES | {"global_batch_size": 10_240}
    rows.append(lost("train", huge, "oom", "CUDA out of memory", suite="arcface-a100"))
    for seed in range(4):
        case = {"recipe": "glyphs", "seed": seed, "settings": {}, "metric": "top1", "world_size": 1}
        result = {"top1": 0.75 + seed / 100, "final_loss": 1.5, "seconds": 100.0 + seed}
        rows.append(row("stability", case, 10.0, environment=LAPTOP, result=result))
    rows.append(row("collectives", {"op": "all_reduce", "world_size": 2, "device": "cpu"}, 0.05, environment=LAPTOP))
    rows.append(lost("train", PHOTOGRAPHS | here, "timeout", "no step in 600 s", environment=LAPTOP))
    rows.append(lost("infer", INFER | here, "failed", "killed by SIGKILL", environment=LAPTOP))
    return [*rows, lost("train", FACES | here, "skipped", "needs 8 devices, has 0", environment=LAPTOP)]


def write_rows(path, rows):
    with RowWriter(path) as writer:
        for one in rows:
            writer.write(one)
    return Path(path)


def document_of(tmp_path, rows, against=()):
    sources = read_sources([write_rows(tmp_path / "rows.jsonl", rows)])
    return build(sources, [published.load(name) for name in against])


def tables_of(document):
    return [table for section in document.sections for table in section.tables]


def pictures_of(document):
    return [picture for section in document.sections for picture in section.pictures]


def column_of(table, title):
    """The cells below a head."""
    place = [column.title for column in table.columns].index(title)
    return [line.cells[place] for line in table.lines]


def table_of(document, title):
    """The only table whose title begins so."""
    (found,) = [table for table in tables_of(document) if table.title.startswith(title)]
    return found


def texts(cells):
    return [cell.text for cell in cells]
