"""The memory that is reckoned before a run is that which its parts take."""

import numpy as np
import pytest
import torch

import tiny
from megaclass.config import from_mapping
from megaclass.heads.margins.curricular import CurricularFace
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.sgd import HeadSGD
from megaclass.plan import activations
from megaclass.plan.memory import Job, memory_of
from megaclass.train.job import build_job
from megaclass.train.model import build_model


def size(tensors):
    return sum(t.nbytes for t in tensors if t is not None and (t.is_floating_point() or t.dtype == torch.int8))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"head": {"storage": "bf16", "sample_rate": 0.5}, "optim": {"name": "lars", "ema_decay": 0.9}},
        {"head": {"storage": "int8_rowwise", "sub_centres": 3}, "precision": {"compute": "bf16"}},
        {"head": {"kind": "linear"}, "optim": {"momentum": 0.0}, "precision": {"compute": "bf16"}},
    ],
)
def test_what_stays_is_that_of_a_job(tmp_path, sections):
    config = from_mapping(sections, from_mapping({"head": {"scale": 64.0}}, tiny.config(tmp_path)))
    job = build_job(config, tiny.world())
    found = memory_of(Job(job.config, job.arithmetic.compute, job.num_classes))
    linear = job.config.head.kind == "linear"
    weights = size([*job.backbone.state_dict().values(), *(job.head.state_dict().values() if linear else ())])
    assert found.weights == weights
    assert found.optimizer == size(t for state in job.optimizer.state.values() for t in state.values())
    assert found.average == (weights if job.average else 0)
    if not linear:
        shard = job.head.shard
        assert found.centres == size(shard.centres.tensors.values())
        assert found.momentum == (size(shard.momentum.tensors.values()) if shard.momentum else 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recompute": "always"},
        {"sample_rate": 0.3},
        {"storage": "bf16", "sample_rate": 0.3, "precision": "bf16"},
        {"storage": "int8_rowwise", "precision": "bf16", "recompute": "always"},
        {"storage": "bf16", "recompute": "never"},
        {"sub_centres": 3, "sample_rate": 0.3},
        {"margin": "curricularface"},
    ],
)
def test_what_a_head_works_in_is_what_it_allocates(options):
    parts = {"margin": CurricularFace()} if "margin" in options else {}
    head = PartialFC(5000, 64, **options | parts)
    optimizer = HeadSGD(head)
    head(torch.randn(24, 64), torch.arange(24)).backward()
    exponentials = head.pending[0].kept.nbytes
    optimizer.step()
    spaces = sum(t.nbytes for t in head.shard.engine.workspace._flat.values())
    sections = {
        "model": {"name": "convnet", "embedding_dim": 64},
        "data": {"global_batch_size": 24},
        "head": options,
    }
    found = memory_of(Job(from_mapping(sections), "fp32", 5000))
    assert found.kept == pytest.approx(exponentials, rel=0.01)
    assert found.tiles == pytest.approx(spaces, rel=0.05)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "model",
    [{"name": "iresnet18", "width": 16}, {"name": "resnet50", "width": 16, "checkpoint_activations": True}],
)
def test_activations_are_those_of_a_step(model, compute):
    """Counted on tensors that have memory, with the layers' own passes on CPUs."""
    config = from_mapping(
        {"model": model, "data": {"image_size": 48}, "precision": {"compute": compute}}, complete=False
    )
    backbone, arithmetic = build_model(config, torch.device("cpu"))
    backbone.train()
    counter = activations._Counter([*backbone.parameters(), *backbone.buffers()])
    with counter:
        images = torch.zeros(16, 3, 48, 48).to(memory_format=arithmetic.memory_format)
        with arithmetic.autocast():
            embeddings = backbone(images)
        embeddings.float().sum().backward()
    made = np.array(counter.changes) >= 0
    sizes = np.array(counter._bytes)[np.where(made, counter.changes, ~np.array(counter.changes))]
    real = (sizes * np.where(made, 1, -1)).cumsum().max()
    found = activations.passes_of(config, compute)
    assert sum(found.peak(16, False)) == pytest.approx(real, rel=0.05)
    assert found.flops / found.forward_flops == pytest.approx(4 if config.model.checkpoint_activations else 3, rel=0.05)
