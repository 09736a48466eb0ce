"""From the words of a user to bounds, and to rows that keep them."""

import datetime
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from megaclass.bench.arguments import counts, device_type, names, share_of_cores
from megaclass.bench.recipes import PRECISIONS
from megaclass.bench.roofline.bound import Bound, bound
from megaclass.bench.roofline.machines import Peaks, machine, measured
from megaclass.bench.roofline.reached import MEASURED, Reached, reached
from megaclass.config import Config, from_mapping
from megaclass.errors import UserError, lookup
from megaclass.models.registry import BACKBONES
from megaclass.results import machine as environment
from megaclass.results.rows import Row, read_rows
from megaclass.train import arithmetic


def bounds(options: Any) -> list[Bound]:
    """Every combination of the lists. UserError: options that make no sense."""
    precisions = [lookup(PRECISIONS, name, "--dtype") for name in names(options.dtype)]
    lists = (names(options.backbone), counts("image-size", options.image_size), precisions)
    configs = [(config_of(name, size), kind) for name, size, kind in itertools.product(*lists)]
    batches = counts("batch-size", options.batch_size)
    if min(batches) < 1:
        raise UserError(f"--batch-size: {min(batches)} is below 1")
    peaks = peaks_of(options, [*precisions, *_of_rows(options.rows)])
    return [bound(config, kind, batch, peaks) for config, kind in configs for batch in batches]


def _of_rows(path: str) -> set[str]:
    return {row.case["precision"] for row in read_rows(path) if row.benchmark in MEASURED} if path else set()


def config_of(backbone: str, image_size: int) -> Config:
    """A backbone with its own options; image_size 0: its own too."""
    builder: Any = lookup(dict(BACKBONES), backbone, "backbone")
    size = image_size or inspect.signature(builder).parameters["image_size"].default
    return from_mapping(
        {"model": {"name": backbone}, "data": {"image_size": size}, "precision": {"compute": "fp32"}}
    )


def peaks_of(options: Any, precisions: Sequence[str]) -> Peaks:
    """As named, as given in numbers, or as measured now."""
    given = (options.peak_tflops, options.bandwidth_gbs)
    if options.machine:
        if any(given):
            raise UserError("--machine names the peaks that --peak-tflops and --bandwidth-gbs give: give one")
        return machine(options.machine)
    if min(given) > 0:
        flops = dict.fromkeys(precisions, given[0] * 1e12)
        return Peaks("given", flops, given[1] * 1e9, "given on the command line")
    if any(given) or min(given) < 0:
        raise UserError(
            "--peak-tflops and --bandwidth-gbs are positive, and belong together: give both, or neither"
        )
    device = torch.device(device_type(options.device))
    arithmetic.use_threads(options.threads or share_of_cores(1))
    return measured(precisions, device)


def reached_rows(path: str, peaks: Peaks) -> list[Reached]:
    """What the rows of a file reach of their bounds. UserError: rows of another machine than the one measured now."""
    rows = read_rows(path)
    here = environment.snapshot()
    for row in rows if peaks.measured else ():
        for key in ("cpu", "gpu"):
            if row.environment.get(key) != here.get(key):
                raise UserError(
                    f"{path}: rows of {row.environment.get(key)}, and this machine has {here.get(key)}; name theirs by "
                    "--machine, or its --peak-tflops and --bandwidth-gbs"
                )
    return [found for row in rows if (found := reached(row, peaks)) is not None]


def row_of(one: Bound) -> Row:
    """The bound as a row: the peaks that it is from, and least times of a step."""
    total = one.total(one.fused)
    peaks = one.peaks
    return Row(
        implementation="megaclass",
        benchmark="roofline",
        status="ok",
        case={
            "backbone": one.backbone,
            "image_size": one.image_size,
            "precision": one.precision,
            "batch_size": one.batch,
            "machine": peaks.name,
            "threads": torch.get_num_threads(),
        },
        work={
            **{f"flops_{name}": value for name, value in total.flops.items()},
            "bytes_unfused": one.total(one.unfused).bytes,
            "bytes_fused": total.bytes,
            "unfused_ms": 1000 * one.total(one.unfused).seconds,
            "fused_ms": 1000 * total.seconds,
            "plain_ms": 1000 * one.plain_seconds,
            "inference_ms": 1000 * one.total(one.inference).seconds,
            "peak_flops_per_second": peaks.flops(one.precision),
            "peak_bytes_per_second": peaks.bytes_per_second,
        },
        environment=environment.snapshot(),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
