"""Opening a record set of 50 M images, and the sampling of a step: time and memory.

    python benchmarks/many_records.py [--images 50000000] [--directory DIR] [--keep]

Only the index is real, a gigabyte of text in the order of the public face sets (images, record 0, identities). The
.rec is a sparse file with record 0 and the records at its ends, so it takes next to no room.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from megaclass.data.records import recordio
from megaclass.data.records.reader import RecordDataset
from megaclass.data.sampler import EpochSampler

CLASSES = 1_000_000
_BLOCK = 1_000_000


def make(directory: Path, images: int) -> None:
    """train.rec, train.idx and property of a set of so many images of 5 KB."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    first = recordio.frame(recordio.pack_payload(1, (0.0,), b"\xff\xd8\xff" + bytes(100)))
    # Beyond 2**24 the two numbers are rounded to float32, as in the public sets.
    zero = recordio.frame(recordio.pack_payload(0, (float(images + 1), float(images + 1 + CLASSES)), b""))
    identity = recordio.frame(recordio.pack_payload(images + 1, (1.0, 51.0), b""))
    with (directory / "train.idx").open("w") as index, (directory / "train.rec").open("wb") as rec:
        rec.write(first)
        offset = 0
        for start in range(0, images, _BLOCK):
            sizes = 4 * rng.integers(1000, 1500, min(_BLOCK, images - start))
            offsets = offset + np.cumsum(sizes) - sizes
            offset = int(offsets[-1] + sizes[-1])
            lines = zip(range(start + 1, start + 1 + len(sizes)), offsets.tolist(), strict=True)
            index.write("".join(f"{key}\t{at}\n" for key, at in lines))
        rec.seek(offset)
        rec.write(zero)
        index.write(f"0\t{offset}\n")
        offset += len(zero)
        for start in range(0, CLASSES, _BLOCK):
            keys = range(images + 1 + start, images + 1 + min(start + _BLOCK, CLASSES))
            index.write(
                "".join(f"{key}\t{offset + len(identity) * i}\n" for i, key in enumerate(keys, start))
            )
        rec.write(identity * 3)
        rec.seek(offset + len(identity) * (CLASSES - 1))
        rec.write(identity)
    (directory / "property").write_text(f"{CLASSES},112,112\n")


def measure(directory: Path, batch_size: int = 1024) -> dict[str, float]:
    """Seconds to open, the process's peak memory and what opening added to it, milliseconds to sample a step."""
    before = _peak_mb()
    cpu, began = time.process_time(), time.perf_counter()
    dataset = RecordDataset(directory)
    opened, opened_cpu = time.perf_counter() - began, time.process_time() - cpu
    sampler = EpochSampler(len(dataset), seed=0)
    steps = []
    for step in range(200):
        began = time.perf_counter()
        sampler.indices(step * batch_size, batch_size)
        steps.append(1e3 * (time.perf_counter() - began))
    return {
        "images": len(dataset),
        "open_s": round(opened, 3),
        "open_cpu_s": round(opened_cpu, 3),
        "sample_step_ms": round(statistics.median(steps), 4),
        "memory_mb": round(_peak_mb(), 1),
        "added_memory_mb": round(_peak_mb() - before, 1),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000_000)
    parser.add_argument(
        "--directory", type=Path, help="where the set is made, or lies already; default: a temporary one"
    )
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        if not (directory / "train.idx").exists():
            make(directory, options.images)
        # Each in a process of its own: a peak of memory is never taken back.
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for _ in range(options.runs):
                print(json.dumps(pool.apply(measure, (directory,))), flush=True)


if __name__ == "__main__":
    main()
