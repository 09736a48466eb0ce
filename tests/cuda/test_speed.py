"""What is to make a step faster on CUDA leaves its numbers as they are: compilation, graphs, recomputation."""

import pytest
import torch

import tiny
from megaclass.parallel.groups import World
from megaclass.train import loop
from megaclass.train.guard import Guard
from megaclass.train.job import build_job
from megaclass.train.loop import evaluation

pytestmark = pytest.mark.gpu

STEPS = 8
BASE = {
    "run": {"device": "cuda"},
    "data": {"image_size": 32},
    "model": {"name": "iresnet18", "width": 16, "embedding_dim": 64},
    "head": {"sample_rate": 0.5},
    "optim": {"ema_decay": 0.9},
}


def curve(folder, compute, **sections):
    """Losses of some steps, with an evaluation among them, and the job."""
    if not (folder / "records").exists():
        tiny.write_records(folder / "records", classes=24)
    evaluate_on = {"task": "verification", "path": str(folder / "records"), "pairs": 40}
    merged = {name: BASE.get(name, {}) | sections.get(name, {}) for name in BASE | sections}
    config = tiny.config(folder, **merged, precision={"compute": compute}, evaluate=evaluate_on)
    job = build_job(config, World(0, 1, torch.device("cuda", 0)))
    guard = Guard(job)
    job.model.train()
    losses = []
    with job.arithmetic.active():
        for step, batch in enumerate(job.feed(job.loader.steps(0, STEPS))):
            loop.set_learning_rate(job, step)
            losses.append(float(loop.train_step(job, batch, step, guard).loss))
            if step == STEPS // 2:
                evaluation(job)
    return losses, job


@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "speed, model",
    [
        ({"compile": "blocks"}, {}),
        ({"compile": "blocks"}, {"checkpoint_activations": True, "checkpoint_stages": [1.0, 2.0]}),
        ({"compile": "whole"}, {}),
        ({"compile": "none", "cuda_graphs": True}, {}),
        ({"compile": "blocks", "cuda_graphs": True}, {}),
    ],
    ids=["blocks", "blocks_recomputed", "whole", "graphs", "blocks_graphs"],
)
def test_the_losses_are_those_of_the_plain_step(tmp_path, compute, speed, model):
    plain, _ = curve(tmp_path, compute, speed={"compile": "none"})
    found, _ = curve(tmp_path, compute, speed=speed, model=model)
    assert found == pytest.approx(plain, rel={"fp32": 1e-3}.get(compute, 5e-2))


def test_auto_compiles_by_blocks_where_triton_works(tmp_path):
    _, job = curve(tmp_path, "bf16")
    assert job.compiled in ("blocks", "none")  # none: told by a warning, without a compiler on the machine
    assert next(iter(job.backbone.state_dict())) == "conv1.weight"


def test_a_graph_leaves_the_running_statistics_alone(tmp_path):
    tiny.write_records(tmp_path / "records", classes=24)
    merged = {name: BASE.get(name, {}) for name in BASE} | {"speed": {"compile": "none", "cuda_graphs": True}}
    job = build_job(tiny.config(tmp_path, **merged), World(0, 1, torch.device("cuda", 0)))
    assert torch.equal(job.backbone.bn1.running_mean, torch.zeros_like(job.backbone.bn1.running_mean))
    assert int(job.backbone.bn1.num_batches_tracked) == 0
