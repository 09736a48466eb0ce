"""From the words of a user to cases of ``bench train``."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from megaclass.bench.arguments import check_timeout, counts, device_type, names, on_cores, rates
from megaclass.bench.cost import START_FLOPS
from megaclass.bench.infer.cases import InferCase, infer_cases
from megaclass.bench.infer.images import open_images
from megaclass.bench.infer.plan import plan_of as infer_plan
from megaclass.bench.recipes import PRECISIONS, SYNTHETIC
from megaclass.bench.runner import Entry
from megaclass.bench.sweep import Planned
from megaclass.bench.train.cases import TrainCase, resolved
from megaclass.bench.train.cost import step_flops
from megaclass.bench.train.entries import check_peers, peers_of, swept, variants
from megaclass.errors import UserError, lookup

MODES = ("train", "val", "train_val")
# Settings that a case has a field for.
FLAGS = {
    "run.device": "--device",
    "run.seed": "--seed",
    "run.threads": "--threads",
    "data.source": "--data-root",
    "data.path": "--data-root",
    "data.num_classes": "--num-classes",
    "data.num_samples": "--num-examples",
    "data.image_size": "--image-size",
    "data.global_batch_size": "--global-batch-size",
    "model.name": "--backbone",
    "head.sample_rate": "--sample-rate",
    "head.parallelism": "--parallelism",
    "head.storage": "--storage",
    "precision.compute": "--dtype",
}
_ITERATIONS = {"cpu": 10, "cuda": 100}


def planned(options: Any) -> list[Planned]:
    """Every case that the options ask for, those of training first. UserError: options that make no sense."""
    lookup(dict.fromkeys(MODES), options.mode, "mode")
    check_timeout(options.timeout)
    values = swept(options.set)
    for key in (*options.settings, *values):
        if key in FLAGS:
            raise UserError(f"--{key}: here that is {FLAGS[key]}")
        if key.startswith("evaluate."):
            raise UserError(f"--{key}: a benchmark of training evaluates nothing; leave it out")
    _check_company(options, values)
    peers = check_peers(names(options.peer) if options.peer else [], options.peer_path)
    device = device_type(options.device)
    timed = options.epochs - options.warmup
    if timed < 1 or options.warmup < 0:
        raise UserError(
            f"--epochs: {options.epochs} with {options.warmup} of warm-up leaves none to time; all epochs count"
        )
    common = {
        "data": options.data_root or SYNTHETIC,
        "num_examples": options.num_examples,
        "iterations": options.iterations or _ITERATIONS[device],
        "epochs": timed,
        "warmup": options.warmup,
        "device": device,
        "image_size": options.image_size,
        "seed": options.seed,
        "settings": options.settings,
        "threads": options.threads,
    }
    training = _cases(options, common) if options.mode != "val" else []
    inference = _inference(options, common) if options.mode != "train" else []
    plans = []
    for case in training:
        entries = [*variants(case, values, options.one_at_a_time), *peers_of(case, peers)]
        plans.append(plan_of(case, entries=entries))
    return [*plans, *map(infer_plan, inference)]


def plan_of(case: TrainCase, entries: Sequence[Entry] = (Entry(),), **more: Any) -> Planned:
    """The case as a sweep takes it."""
    skip = case.why_skipped(torch.cuda.device_count())
    steps = case.iterations * (case.epochs + case.warmup)
    weight = START_FLOPS * case.world_size + step_flops(case) / case.simulate_ranks * steps
    weight *= sum(not entry.missing for entry in entries)
    return Planned(case=case, entries=list(entries), skip=skip, weight=weight, **more)


def _check_company(options: Any, values: Mapping[str, Any]) -> None:
    """UserError: flags about who takes turns that go with no other."""
    if options.one_at_a_time and not values:
        raise UserError("--one-at-a-time goes with --set section.key=VALUE,VALUE")
    if not values and not options.peer:
        return
    if options.mode != "train":
        raise UserError(f"--set and --peer are of training: they go with --mode train, not {options.mode}")
    if options.output.endswith(".json"):
        raise UserError("--set and --peer: a report in .json has one place a case; name a file in .jsonl")


def _inference(options: Any, common: dict[str, Any]) -> list[InferCase]:
    """The same networks without training, on one device: NVIDIA's ``--mode val``."""
    if not options.batch_size:
        raise UserError(f"--mode {options.mode}: inference needs --batch-size, of a device")
    ignored = {"ngpus": "1", "sample_rate": "0", "parallelism": "", "storage": "", "simulate_ranks": "1"}
    for name, default in ignored.items() if options.mode == "val" else ():
        if getattr(options, name) != default:
            raise UserError(
                f"--{name.replace('_', '-')} has no effect with --mode val, which measures one device"
            )
    if options.data_root:
        open_images(options.data_root)
    (classes,) = counts("num-classes", options.num_classes)[:1]
    kept = ("data", "iterations", "epochs", "warmup", "device", "image_size", "seed", "settings")
    found = infer_cases(
        recipe=names(options.recipe),
        backbone=names(options.backbone),
        precision=[lookup(PRECISIONS, name, "--dtype") for name in names(options.dtype)],
        batch_size=counts("batch-size", options.batch_size),
        num_classes=classes,
        **{name: common[name] for name in kept},
    )
    return on_cores(found, common["threads"])


def _cases(options: Any, common: dict[str, Any]) -> list[TrainCase]:
    """Every combination of the lists; the last varies fastest."""
    if options.global_batch_size and options.batch_size:
        raise UserError("--batch-size is of each device, --global-batch-size of all of them: give one")
    lists: dict[str, list[Any]] = {
        "recipe": names(options.recipe),
        "backbone": names(options.backbone),
        "num_classes": counts("num-classes", options.num_classes),
        "sample_rate": rates("sample-rate", options.sample_rate),
        "parallelism": names(options.parallelism),
        "storage": names(options.storage),
        "precision": [lookup(PRECISIONS, name, "--dtype") for name in names(options.dtype)],
        "world_size": counts("ngpus", options.ngpus),
        "simulate_ranks": counts("simulate-ranks", options.simulate_ranks),
        "batch": counts("batch-size", options.batch_size or options.global_batch_size or "0"),
    }
    found = []
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        batch = chosen.pop("batch")
        ranks = chosen["world_size"] * chosen["simulate_ranks"] if options.batch_size else 1
        found.append(
            resolved(TrainCase(global_batch_size=batch * ranks, **chosen, **common | {"threads": 1}))
        )
    return on_cores(found, common["threads"])
