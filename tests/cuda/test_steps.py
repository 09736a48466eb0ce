"""A training step on a CUDA device: the numbers of a CPU's, and how often the host waits for the device in it."""

import subprocess
import sys
from collections import Counter

import pytest
import torch

import tiny
from kernel_cases import error
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.sgd import HeadSGD
from megaclass.models.registry import build_backbone
from megaclass.parallel.groups import World
from megaclass.train import loop
from megaclass.train.guard import Guard
from megaclass.train.job import build_job

STEPS = 3
EMULATED = torch.version.cuda is None
# Where the host waits in a step, and how often: nowhere at rate 1. A sampled step has to learn how many rows it has.
SAMPLED = {"heads/sampling.py sample_classes": 1}
PLAIN = {"heads/softmax.py pass_two": 1}  # whether it is skipped
PLAIN_SAMPLED = SAMPLED | PLAIN | {"parallel/seeding.py _walk": 2}
# Relative errors beside a CPU; the second one also where Adam makes whole steps of gradients that are rounding alone.
ROUNDED, HALF = 1e-5, 5e-2

FULL, TORCH, LINEAR = {"sample_rate": 1.0}, {"kernels": "torch"}, {"kind": "linear"}
SYNTHETIC = {"source": "synthetic", "path": "", "num_classes": 9, "num_samples": 99}
RECOMPUTED = {"checkpoint_activations": True}
IRESNET = {"model": {"name": "iresnet18", "width": 16, "embedding_dim": 16}, "data": {"image_size": 32}}
CASES = {
    "triton": (ROUNDED, SAMPLED, {}),
    "triton full": (ROUNDED, {}, {"head": FULL}),
    "triton bf16 rows": (HALF, SAMPLED, {"head": {"storage": "bf16"}}),
    "triton int8 rows full": (HALF, {}, {"head": {"storage": "int8_rowwise"} | FULL}),
    "torch": (ROUNDED, PLAIN_SAMPLED, {"head": TORCH}),
    "torch full": (ROUNDED, PLAIN, {"head": TORCH | FULL}),
    "torch bf16 rows": (ROUNDED, PLAIN_SAMPLED, {"head": TORCH | {"storage": "bf16"}}),
    "torch int8 rows": (ROUNDED, PLAIN_SAMPLED, {"head": TORCH | {"storage": "int8_rowwise"}}),
    "torch bf16 products": (HALF, PLAIN_SAMPLED, {"head": TORCH | {"precision": "bf16"}}),
    "torch filtered": (ROUNDED, PLAIN, {"head": TORCH | FULL | {"filter_threshold": 0.3, "gradient": "exact"}}),
    "torch data parallel": (ROUNDED, PLAIN, {"head": TORCH | FULL | {"parallelism": "data"}}),
    "accumulation": (ROUNDED, {}, {"data": {"accumulation": 2}, "head": FULL}),
    "bf16": (HALF, PLAIN, {"precision": {"compute": "bf16"}, "head": TORCH | FULL}),
    "fp16": (HALF, PLAIN, {"precision": {"compute": "fp16"}, "head": TORCH | FULL}),
    "head beside gradients": (ROUNDED, PLAIN, {"speed": {"overlap_head": True}, "head": TORCH | FULL}),
    "skips spikes": (ROUNDED, PLAIN, {"run": {"on_divergence": "skip"}, "head": TORCH | FULL}),
    "adamw": (HALF, PLAIN, {"optim": {"name": "adamw"}, "head": TORCH | FULL}),
    "lamb": (HALF, PLAIN, {"optim": {"name": "lamb"}, "head": TORCH | FULL}),
    "lars, averaged": (ROUNDED, {}, {"optim": {"name": "lars", "ema_decay": 0.9}, "head": LINEAR}),
    "mixed, as imagenet": (ROUNDED, {}, {"augment": {"mixup": 0.2}, "data": {"normalise": "imagenet"}, "head": LINEAR}),
    "synthetic": (None, {}, {"data": SYNTHETIC, "head": FULL}),
    "iresnet": (ROUNDED, PLAIN, {**IRESNET, "head": TORCH | FULL}),
    "recomputed": (ROUNDED, PLAIN, {**IRESNET, "model": IRESNET["model"] | RECOMPUTED, "head": TORCH | FULL}),
    "synchronised norms": (ROUNDED, PLAIN, {"model": {"sync_norm": True}, "head": TORCH | FULL}),
}  # fmt: skip


def train(folder, device, sections, recorded):
    """The job after some steps, their losses, and what the device was asked in each."""
    base = {"run": {"device": device}, "speed": {"compile": "none"}}
    base["head"] = {} if sections.get("head", {}).get("kind") == "linear" else {"sample_rate": 0.5}
    merged = {name: base.get(name, {}) | sections.get(name, {}) for name in base | sections}
    job = build_job(tiny.config(folder, **merged), World(0, 1, torch.device(device)))
    guard, losses, records = Guard(job), [], []
    job.model.train()
    with job.arithmetic.active():
        batches = job.feed(job.loader.steps(0, STEPS))
        for step in range(STEPS):
            with recorded() as record:
                loop.set_learning_rate(job, step)
                outcome = loop.train_step(job, next(batches), step, guard)
            losses.append(outcome.loss)
            records.append(record)
            if job.evaluator is not None:  # it must leave a compiled or captured training alone
                loop.evaluation(job)
    return job, losses, records


def state(job):
    """All that was trained, as one vector."""
    found = list(job.backbone.state_dict().values())
    if isinstance(job.head, PartialFC):
        job.head.shard.catch_up()
        found.append(job.head.centres())
    else:
        found += job.head.state_dict().values()
    return torch.cat([tensor.cpu().double().flatten() for tensor in found])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_has_the_numbers_of_a_cpu_and_waits_as_seldom_as_it_can(case, tmp_path, recorded):
    tolerance, waits, sections = case
    job, losses, records = train(tmp_path, "cuda", sections, recorded)
    if EMULATED:  # the first step makes constants and work space
        assert [Counter(where for _, where in r.waits) for r in records[1:]] == [waits] * (STEPS - 1)
    if tolerance is None:  # draws of the device's own
        return
    on_cpu, losses_cpu, _ = train(tmp_path, "cpu", sections, recorded)
    tolerance = tolerance if EMULATED else max(tolerance, 1e-3)
    assert error(torch.stack(losses).cpu(), torch.stack(losses_cpu)) <= tolerance
    assert error(state(job), state(on_cpu)) <= tolerance


@pytest.mark.parametrize("name", ["vit_t", "mbf", "resnet50"])
def test_a_pass_of_a_backbone_does_not_wait(name, recorded):
    options = {
        "vit_t": {"embedding_dim": 8, "mask_ratio": 0.1, "drop_path": 0.1},
        "mbf": {"embedding_dim": 8},
    }
    backbone = build_backbone(name, image_size=112, **options.get(name, {"width": 8})).cuda()
    images = torch.randn(2, 3, 112, 112, device="cuda")
    with recorded() as record, torch.autocast("cuda", torch.bfloat16):
        found = backbone(images)
        found.float().square().mean().backward()
    assert record is None or record.waits == []
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())


COMPILED = [
    ({"compile": "blocks"}, {}),
    ({"compile": "blocks"}, RECOMPUTED | {"checkpoint_stages": [1.0, 2.0]}),
    ({"compile": "whole"}, {}),
    ({"compile": "none", "cuda_graphs": True}, {}),
    ({"compile": "blocks", "cuda_graphs": True}, {}),
]


@pytest.mark.gpu
@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("speed, model", COMPILED)
def test_what_makes_a_step_faster_leaves_its_losses(compute, speed, model, tmp_path, recorded):
    records = str(tiny.write_records(tmp_path / "records", classes=24))
    evaluate = {"task": "verification", "path": records, "pairs": 40}
    sections = {**IRESNET, "precision": {"compute": compute}, "evaluate": evaluate}
    plain = train(tmp_path, "cuda", sections, recorded)[1]
    found = train(tmp_path, "cuda", sections | {"speed": speed, "model": IRESNET["model"] | model}, recorded)[1]
    assert error(torch.stack(found), torch.stack(plain)) < {"fp32": 1e-3}.get(compute, 5e-2)


@pytest.mark.gpu
def test_a_graph_leaves_the_running_statistics_alone_and_auto_compiles_blocks(tmp_path):
    world, base = World(0, 1, torch.device("cuda")), {"run": {"device": "cuda"}, **IRESNET}
    graphs = {"compile": "none", "cuda_graphs": True}
    norm = build_job(tiny.config(tmp_path, **base, speed=graphs), world).backbone.bn1
    assert not norm.running_mean.any() and int(norm.num_batches_tracked) == 0
    job = build_job(tiny.config(tmp_path, **base), world)
    assert job.compiled in ("blocks", "none")  # none: told by a warning, without a compiler on the machine
    assert next(iter(job.backbone.state_dict())) == "conv1.weight"


@pytest.mark.emulated
def test_the_emulated_device_refuses_and_tells_what_a_real_one_would(recorded):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    for mixed in (lambda: here + there, lambda: torch.stack([here, there]), lambda: there.copy_(here) @ here):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with recorded() as record:
        there[there > 0] = 2.0 * torch.tensor(1.0)  # a number of the host travels with the kernel
        assert there.to(here.pin_memory(), non_blocking=True).is_cpu
    assert record.waits == [] and len(record.launches) > 2
    with recorded() as record:
        assert there[there > 0].sum().item() == 6
    assert [what for what, _ in record.waits] == ["aten::nonzero", "a number is read"]


@pytest.mark.emulated
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_running_statistics_and_larger_steps_take_a_few_kernels(tmp_path, recorded, name):
    _, _, records = train(tmp_path, "cuda", IRESNET | {"optim": {"name": name}}, recorded)  # 50 norms, 110 weights
    launches = Counter(where for _, where in records[-1].launches)
    assert launches["train/guard.py begin_step"] == 1
    assert launches["train/guard.py end_step"] < 20
    assert launches["train/optimizer.py _step"] < 60


@pytest.mark.emulated
def test_a_step_with_torchs_own_scaler_does_not_wait(recorded):
    head = PartialFC(20, 8, device="cuda")
    backbone, scaler = torch.nn.Linear(8, 8, device="cuda"), torch.amp.GradScaler("cuda")
    optimizers = [HeadSGD(head, lr=0.1), torch.optim.SGD(backbone.parameters(), lr=0.1, fused=True)]
    images, labels = torch.randn(4, 8, device="cuda"), torch.arange(4, device="cuda")
    for _ in range(2):
        with recorded() as record:
            scaler.scale(head(backbone(images), labels)).backward()
            for optimizer in optimizers:
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()
    assert record.waits == []


WRONG_LABEL = """
import sys, torch
from megaclass import cli, PartialFC
from megaclass.cli import models
def train(words):
    head = PartialFC(10, 4, device="cuda", sample_rate=0.5)
    head(torch.randn(2, 4, device="cuda"), torch.tensor([1, 10], device="cuda")).item()
models.train = train
sys.exit(cli.main(["train"]))
"""


def test_a_label_outside_the_classes_ends_with_one_line():
    child = [sys.executable, "-c", WRONG_LABEL]  # a device that has failed stays so
    done = subprocess.run(child, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "a label is outside [0, 10)" in done.stderr
    assert "\nmegaclass: error: a check on the GPU failed" in done.stderr and "Traceback" not in done.stderr
