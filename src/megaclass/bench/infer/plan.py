"""``megaclass bench infer``: from the words of a user to cases."""

from pathlib import Path
from typing import Any

import torch

from megaclass.bench.arguments import check_timeout, counts, device_type, names, on_cores
from megaclass.bench.cost import START_FLOPS, backbone_cost
from megaclass.bench.infer import onnx_engine
from megaclass.bench.infer.cases import InferCase, config_of, infer_cases
from megaclass.bench.infer.images import open_images
from megaclass.bench.recipes import PRECISIONS, SYNTHETIC
from megaclass.bench.runner import Entry
from megaclass.bench.sweep import Planned
from megaclass.errors import UserError, lookup

_ITERATIONS = {"cpu": 10, "cuda": 100}
# What could be computed while the engine of a case is made: only for the time left.
_ENGINE_FLOPS = {"compiled": 2e13, "cudagraph": 2e13, "onnx": 4e12}


def planned(options: Any) -> list[Planned]:
    """Every case that the options ask for. UserError: options that make no sense."""
    check_timeout(options.timeout)
    device = device_type(options.device)
    timed = options.epochs - options.warmup
    if timed < 1 or options.warmup < 0:
        raise UserError(
            f"--epochs: {options.epochs} with {options.warmup} of warm-up leaves none to time; all epochs count"
        )
    found = infer_cases(
        recipe=names(options.recipe),
        backbone=names(options.backbone),
        engine=names(options.engine),
        precision=[lookup(PRECISIONS, name, "--dtype") for name in names(options.dtype)],
        batch_size=counts("batch-size", options.batch_size),
        image_size=options.image_size,
        num_classes=options.num_classes,
        data=options.data_root or SYNTHETIC,
        iterations=options.iterations or _ITERATIONS[device],
        epochs=timed,
        warmup=options.warmup,
        device=device,
        seed=options.seed,
    )
    if options.data_root:
        if not Path(options.data_root).exists():
            raise UserError(
                f"--data-root: {options.data_root} does not exist; name a set or a directory with val/"
            )
        open_images(options.data_root)
    return [plan_of(case) for case in on_cores(found, options.threads)]


def forward_flops(case: InferCase) -> float:
    """Operations of a batch."""
    return case.batch_size * backbone_cost(config_of(case)).flops


def plan_of(case: InferCase, **more: Any) -> Planned:
    """A resolved case as a sweep takes it."""
    missing = onnx_engine.missing(case.device) if case.engine == "onnx" else ""
    steps = case.iterations * (case.epochs + case.warmup)
    weight = START_FLOPS + _ENGINE_FLOPS.get(case.engine, 0.0) + steps * forward_flops(case)
    skip = case.why_skipped(torch.cuda.device_count())
    return Planned(case=case, entries=[Entry(missing=missing)], skip=skip, weight=weight, **more)
