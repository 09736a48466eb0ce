"""Rows of training and inference as the JSON report of NVIDIA's ResNet-50 script, so that what reads the one reads the
other (DeepLearningExamples, MxNet/Classification/RN50v1.5, benchmark.py).

``metrics`` is by number of devices and by batch size of a device. A case that came to no number has null, where the
script writes NaN, which JSON does not have.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaclass.errors import UserError
from megaclass.files import whole_file
from megaclass.results.rows import Row

PERCENTILES = (50, 90, 95, 99, 100)
_KEYS = {
    "train": ["train.ips"],
    "train_val": ["train.ips", "val.ips", "val.latency_avg"],
    "val": ["val.ips", "val.latency_avg", *(f"val.latency_{p}" for p in PERCENTILES)],
}
_SHAPE: dict[str, Any] = {"model": "", "ngpus": [], "bs": [], "metric_keys": [], "metrics": {}}


def check_report(path: Path, cases: Sequence[Any]) -> None:
    """UserError: a file that is somebody else's, or cases that its shape cannot hold: two for one place."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else _SHAPE
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found.keys() >= _SHAPE.keys():
        raise UserError(f"--output: {path} exists, and is no report of a benchmark; name another file")
    places = [(case.benchmark, _place(case.benchmark, case.parameters())) for case in cases]
    if len(set(places)) < len(places):
        raise UserError(
            f"--output: {path.name} has one place for each number of devices and batch size; give one --dtype, recipe "
            "and sample rate for each, or a name in .jsonl"
        )


def write_report(path: Path, rows: Sequence[Row], mode: str) -> None:
    """Write what ``rows`` say, replacing an earlier report. UserError where the disk refuses it."""
    with whole_file("--output", path) as part:
        part.write_text(json.dumps(as_report(rows, mode), indent=4) + "\n", encoding="utf-8")


def as_report(rows: Sequence[Row], mode: str) -> dict[str, Any]:
    keys = _KEYS[mode]
    metrics: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in rows:
        devices, batch = _place(row.benchmark, row.case)
        place = metrics.setdefault(str(devices), {}).setdefault(str(batch), dict.fromkeys(keys))
        place |= _metrics(row) if row.status == "ok" else {}
    return {
        "model": " ".join(dict.fromkeys(str(row.case["recipe"]) for row in rows)),
        "ngpus": sorted(int(devices) for devices in metrics),
        "bs": sorted({int(batch) for places in metrics.values() for batch in places}),
        "metric_keys": keys,
        "metrics": metrics,
    }


def _place(benchmark: str, case: dict[str, Any]) -> tuple[int, int]:
    """Devices, and images of a step on each."""
    if benchmark == "infer":
        return 1, case["batch_size"]
    devices = case["world_size"] * case["simulate_ranks"]
    return devices, case["global_batch_size"] // devices


def _metrics(row: Row) -> dict[str, float | None]:
    """Latencies are in seconds, as there."""
    if row.benchmark == "train":
        return {"train.ips": row.rates["total"]}
    names = {"avg": "mean"} | {str(p): f"p{p}" for p in PERCENTILES}
    latencies = {f"val.latency_{name}": round(row.step_ms[key] / 1000, 9) for name, key in names.items()}
    return {"val.ips": row.rates["total"]} | latencies
