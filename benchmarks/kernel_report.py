"""What the compiler says of the head's kernels, and what follows: the tables of docs/explanation/kernels.md.

    python benchmarks/kernel_report.py [--write]

No GPU is needed. Two minutes on a core; --write puts the tables into the page.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/explanation/kernels.md"
BEGIN, END = "<!-- kernel_report.py -->\n", "<!-- end -->\n"

# H100 SXM: bytes/s of its memory as copies reach it; FLOP/s of FlashMLA's dense kernel in two versions.
BANDWIDTH, FLOPS = 3.0e12, (660e12, 580e12)
ROWS, DIM, BATCH = 10_000_000, 512, 1024
STORED = {
    "fp32": (4, 4),
    "bf16": (2, 2),
    "int8_rowwise": (1, 0),
}  # bytes of an element of centres, of momentum


def compiled(capability: int, dim: int, precision: str) -> str:
    """A row of the table of resources."""
    program = [sys.executable, ROOT / "tests/cuda/compiled.py", capability, dim, precision, "fp32"]
    said = subprocess.run([*map(str, program)], capture_output=True, text=True, check=True).stdout
    start = f"| {capability // 10}.{capability % 10} | {dim:,} | {precision} | "
    if refused := re.match(r"refused: .* spills (\d+) registers", said):
        return f"{start}refused | | {refused[1]} | | | |"
    _, one, two = map(json.loads, said.splitlines())
    pairs = [f"{one[key]} / {two[key]}" for key in ("spilled", "loop", "reloads")]
    shared, product = f"{one['shared'] >> 10} / {two['shared'] >> 10}", one["product"].partition(".F32")[0]
    return start + " | ".join([f"{one['rows']} x {one['turn']}", shared, *pairs, product]) + " |"


def predicted(rate: float, storage: str) -> str:
    """A row of the table of times: ms at best, where all traffic of pass 2 hides behind its products, and at worst."""
    centre, momentum = (bytes_ * DIM * ROWS * rate for bytes_ in STORED[storage])
    unit = (centre + momentum * (rate < 1)) / BANDWIDTH * 1e3
    traffic = 2 * (centre + momentum) / BANDWIDTH * 1e3
    products = [4 * BATCH * ROWS * rate * DIM / flops * 1e3 for flops in FLOPS]
    best = unit + products[0] + max(products[0], traffic)
    worst = unit + 2 * products[1] + traffic
    passes = f"{products[0]:.1f} to {products[1]:.1f}"
    return f"| {rate} | {storage} | {unit:.1f} | {passes} | {traffic:.1f} | {best:.0f} to {worst:.0f} |"


def tables() -> str:
    devices = [(90, "bf16"), (90, "tf32"), (80, "bf16"), (80, "tf32")]
    lines = [
        "| GPU | D | precision | blocks | shared KB | spilled | loop | reloads | product |",
        "|---|---|---|---|---|---|---|---|---|",
        *(compiled(sm, dim, precision) for sm, precision in devices for dim in (128, 256, 512, 1024)),
        "",
        "| rate | storage | unit rows | products, each pass | traffic of pass 2 | all, predicted |",
        "|---|---|---|---|---|---|",
        *(predicted(rate, storage) for rate in (1.0, 0.1) for storage in STORED),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    found = tables()
    print(found)
    if "--write" in sys.argv:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(before + BEGIN + found + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
