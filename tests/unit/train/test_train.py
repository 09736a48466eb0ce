"""The training loop on one rank: what it writes, what it computes, and what it does with steps that fail."""

import contextlib
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from megaclass import checkpoint
from megaclass.checkpoint.weights import stored_rows
from megaclass.config import load_recipe
from megaclass.errors import UserError
from megaclass.heads.storage import STORAGES, Storage
from megaclass.models import registry
from megaclass.results.events import (
    CheckpointEvent,
    EndEvent,
    EvaluationEvent,
    StartEvent,
    StepEvent,
    read_events,
)
from megaclass.train import loop, model
from megaclass.train.guard import Guard
from megaclass.train.resume import Found, restore

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny_losses.json"
RESULT_KEYS = {
    "recipe", "steps", "samples", "seconds", "samples_per_second", "time_to_train_s", "final_loss", "world_size",
    "environment",
}  # fmt: skip


def run(folder, resume=False, **sections):
    """(result, events) of a whole run into ``folder/run``."""
    directory, result = tiny.run(folder, resume, **sections)
    assert json.loads(directory.result.read_text()) == result
    return result, read_events(directory.events)


def steps(events):
    return [event for event in events if isinstance(event, StepEvent)]


def losses(folder, **sections):
    return [event.loss for event in steps(run(folder, **sections)[1])]


# -- what a run leaves --------------------------------------------------------------------------------


def test_a_run_writes_all_that_it_promises(tmp_path):
    tiny.write_records(tmp_path / "records", classes=24)
    sections = {
        "run": {"checkpoint_every": 4},
        "evaluate": {"task": "verification", "path": str(tmp_path / "records"), "pairs": 40, "every": 5},
    }
    result, events = run(tmp_path, **sections)

    assert set(result) == RESULT_KEYS | {"verification", "best"}
    assert result["time_to_train_s"] > result["seconds"]  # there were two evaluations
    assert (result["recipe"], result["world_size"], result["steps"], result["samples"]) == (
        "tiny",
        1,
        10,
        120,
    )
    assert result["samples_per_second"] == pytest.approx(120 / result["seconds"], rel=0.01)
    assert {"system", "cpu", "memory_mb", "pytorch", "python", "revision"} <= set(result["environment"])
    found = result["verification"]
    assert {"pair_accuracy", "pair_accuracy_std", "auc", "tar_at_far", "one_shot_20way"} <= set(found)
    assert "1e-2" in found["tar_at_far"] and 0.5 < found["pair_accuracy"] <= 1

    told = steps(events)
    assert [(event.step, event.epoch) for event in told] == [*((n, 0) for n in range(1, 9)), (9, 1), (10, 1)]
    assert told[-1].loss == result["final_loss"] < 0.5 * told[0].loss
    assert [e.step for e in events if isinstance(e, EvaluationEvent)] == [5, 10]
    saved = [event for event in events if isinstance(event, CheckpointEvent)]
    assert [event.step for event in saved] == [4, 8, 10]
    assert (tmp_path / "run" / saved[-1].path) == checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert isinstance(events[-1], EndEvent) and events[-1].reason == "finished"
    assert load_recipe(str(tmp_path / "run" / "config.toml")) == tiny.config(tmp_path, **sections)


def test_resuming_a_finished_run_changes_nothing(tmp_path, capsys):
    before, _ = run(tmp_path)
    checkpoints = [path.name for path in checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")]
    after, events = run(tmp_path, resume=True)
    for result in (before, after):
        for key in ("seconds", "samples_per_second"):
            result.pop(key)
    assert before == after and len(steps(events)) == 10
    assert checkpoints == [p.name for p in checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")]
    scored = {"task": "verification", "path": str(tmp_path / "records"), "pairs": 40}
    _, events = run(tmp_path, resume=True, head={"m2": 0.3}, evaluate=scored)
    assert "head.m2 stays 0.5: no step is left for 0.3" in capsys.readouterr().out
    stored = load_recipe(str(tmp_path / "run" / "config.toml"))
    last = [event for event in events if isinstance(event, StartEvent)][-1].config
    assert stored.head.m2 == last["head"]["m2"] == 0.5 and stored.evaluate.pairs == 40


def test_a_run_keeps_the_names_of_its_classes(tmp_path):
    names = tiny.write_records(tmp_path / "records") / "classes.txt"
    names.write_text("a\nb\nc\nd\ne\nf\n")
    run(tmp_path)
    names.write_text("a\nb\nx\nd\ne\nf\n")
    with pytest.raises(UserError, match=r"data.path: .*'x' in the place of 'c'"):
        run(tmp_path, resume=True)
    kept = tmp_path / "run" / "classes.txt"
    assert kept.read_text() == "a\nb\nc\nd\ne\nf\n"
    for damaged in ("a\nb\nc\n", None):
        kept.write_text(damaged) if damaged else kept.unlink()
        run(tmp_path, resume=True)
        assert kept.read_text() == names.read_text()


@pytest.mark.parametrize(
    "before, after",
    [
        (STORAGES["fp32"], "int8_rowwise"),
        (STORAGES["int8_rowwise"], "fp32"),
        (Storage(torch.bfloat16, momentum=False), "fp32"),  # as earlier versions had it, and the next two
        (Storage(torch.int8, momentum=True), "bf16"),
        (Storage(torch.float32, momentum=False), "int8_rowwise"),
    ],
    ids=str,
)
def test_a_run_goes_on_in_another_storage(tmp_path, monkeypatch, before, after):
    with monkeypatch.context() as patch:
        patch.setitem(STORAGES, "fp32", before)
        run(tmp_path, head={"storage": "fp32", "sample_rate": 0.5})
    longer = {"steps": 14}
    _, events = run(tmp_path, resume=True, head={"storage": after, "sample_rate": 0.5}, schedule=longer)
    curve = [event.loss for event in steps(events)]
    assert len(curve) == 14 and max(curve[10:]) < 0.1 * curve[0]  # it has not begun anew


def test_a_margin_by_its_name_and_by_its_numbers(tmp_path):
    named, _ = run(tmp_path / "named", head={"margin": "cosface"})
    numbers, _ = run(tmp_path / "numbers", head={"m2": 0.0, "m3": 0.4})
    assert named["final_loss"] == numbers["final_loss"]
    with pytest.raises(UserError, match="did you mean 'cosface'"):
        tiny.job(tmp_path, head={"margin": "cosfase"})


def test_margins_of_classes_come_from_the_data_or_from_a_file(tmp_path):
    tiny.write_records(tmp_path / "records", classes=2, samples=3)
    told = tiny.job(tmp_path, head={"margin": "population", "margin_options": "gamma=0"})
    expected = 0.8 * (1 + math.cos(math.pi / 1.05)) / 2
    assert told.head.class_margins.tolist() == pytest.approx([expected] * 2)
    file = tmp_path / "margins.txt"
    head = {"margin": "per_class", "class_margins": str(file)}
    file.write_text("0.1\n0.5\n")
    assert tiny.job(tmp_path, head=head).head.class_margins.tolist() == pytest.approx([0.1, 0.5])
    for text, words in (
        ("0.1", "head.class_margins: 1 margins for 2 classes"),
        ("0.1\nwide", "head.class_margins: .*'wide'"),
        ("0.1 0.5", "head.class_margins: .*'0.1 0.5'"),
        ("0.1\nnan", r"head.class_margins: .* in \[0, 2\]"),
        ("0.1\n30", r"head.class_margins: .* in \[0, 2\]"),
        ("", "head.class_margins: .*empty"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            tiny.job(tmp_path, head=head)


def test_a_linear_head_learns_to_classify(tmp_path):
    result, events = run(
        tmp_path,
        head={"kind": "linear", "label_smoothing": 0.1},
        optim={"lr": 0.1},
        schedule={"steps": 30},
        evaluate={"task": "classification", "path": str(tmp_path / "records")},
    )
    assert set(result) == RESULT_KEYS | {"classification", "best"}
    assert result["best"] == {
        "step": 30,
        "score": result["classification"]["top1"],
        "checkpoint": "step-00000030",
    }
    assert result["classification"]["top1"] > 0.9 and result["classification"]["top5"] >= 0.9
    # Smoothing by 0.1 over 6 classes keeps the loss above the entropy of the smoothed target, 0.42.
    assert 0.42 < steps(events)[-1].loss < 0.7 * steps(events)[0].loss


GROWING = {
    "head": {"kind": "linear"},
    "model": {"name": "resnet18", "width": 16, "stem": "small", "embedding_dim": 512},
    "data": {"start_size": 8, "full_size_at": 0.5, "image_size": 32},
    "optim": {"ema_decay": 0.9, "lr": 0.02},
    "schedule": {"steps": 6},
}


def test_a_run_of_growing_images_and_averaged_weights_goes_on_as_if_never_stopped(tmp_path, monkeypatch):
    sizes, step_as_it_is = [], loop.train_step

    def watched(job, batch, step, guard):
        sizes.append(batch.images.shape[1:3])
        return step_as_it_is(job, batch, step, guard)

    monkeypatch.setattr(loop, "train_step", watched)
    evaluate = {"task": "classification", "path": str(tmp_path / "records"), "image_size": 40, "every": 2}
    run(tmp_path, **GROWING, evaluate=evaluate, run={"checkpoint_every": 1, "keep_last": 6})
    assert sizes == [(8, 8)] * 2 + [(24, 24)] + [(32, 32)] * 3
    whole = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000006").state
    assert not torch.equal(whole["ema"]["backbone"]["conv1.weight"], whole["backbone"]["conv1.weight"])
    for step in (3, 4, 5, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
    del sizes[:]
    run(tmp_path, resume=True, **GROWING, evaluate=evaluate, run={"checkpoint_every": 1, "keep_last": 6})
    assert sizes == [(24, 24)] + [(32, 32)] * 3
    resumed = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000006").state
    for part in ("backbone", "head"):
        for weights, others in ((whole[part], resumed[part]), (whole["ema"][part], resumed["ema"][part])):
            assert all(torch.equal(value, others[key]) for key, value in weights.items())


def test_the_averaged_weights_are_evaluated_and_training_goes_on_with_its_own(tmp_path):
    job = tiny.job(tmp_path, optim={"ema_decay": 0.9})
    guard, evaluated = Guard(job), []
    job.evaluator = lambda backbone, head: evaluated.append(backbone.fc.weight.detach().clone())
    for step, batch in enumerate(job.loader.steps(0, 3)):
        loop.train_step(job, batch, step, guard)
    own = job.backbone.fc.weight.detach().clone()
    loop.evaluation(job)
    assert torch.equal(evaluated[0], job.average.state_dict()["backbone"]["fc.weight"])
    assert torch.equal(job.backbone.fc.weight, own) and not torch.equal(evaluated[0], own)


@pytest.mark.parametrize("sections", [{"data": {"start_size": 8}}, {"evaluate": {"image_size": 24}}])
def test_a_backbone_of_one_size_takes_no_other(tmp_path, sections):
    with pytest.raises(UserError, match=r"size: .*, but convnet is made for images of 16 pixels alone"):
        tiny.job(tmp_path, **sections)


@pytest.mark.long
@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_a_compiled_backbone_computes_the_same(tmp_path, monkeypatch, how):
    graphs = []

    def counted(graph, inputs):  # tracing is what can go wrong here, not a C++ compiler
        graphs.append(torch.is_grad_enabled())
        return graph.forward

    sections = {
        "model": {"name": "iresnet18", "width": 16},
        "data": {"image_size": 16},
        "schedule": {"steps": 2},
        "evaluate": {"task": "verification", "path": str(tmp_path / "records"), "pairs": 40, "every": 1},
    }
    if how == "blocks":
        sections["model"] |= {"checkpoint_activations": True, "checkpoint_stages": [2.0]}
    tiny.write_records(tmp_path / "records", classes=24)
    plain = losses(tmp_path, **sections)
    shutil.rmtree(tmp_path / "run")
    monkeypatch.setattr(model, "BACKEND", counted)
    compiled = losses(tmp_path, **sections, speed={"compile": how})
    assert compiled == pytest.approx(plain, rel=1e-4)
    # Two kinds of blocks in each of the stages; and an evaluation compiles nothing.
    assert len(graphs) in {"whole": (1,), "blocks": range(5, 12)}[how] and all(graphs)
    names = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints")).state["backbone"]
    assert "layer1.0.conv1.weight" in names


def test_the_fixed_seed_curve(tmp_path, monkeypatch):
    """A refactor shows the same losses; a change that is meant to alter them renews the file, and says why:

    RENEW_GOLDEN=1 pytest tests/unit/train/test_train.py -k fixed_seed
    """
    monkeypatch.setitem(registry.BACKBONES, "smooth", tiny.smooth)
    found = losses(tmp_path, model={"name": "smooth"}, augment={"rotate_degrees": 10.0, "flip": True})
    if os.environ.get("RENEW_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-3)


# -- what a step computes -----------------------------------------------------------------------------


class Plain(nn.Sequential):
    """A backbone without batch statistics."""

    def __init__(self, *, embedding_dim: int, image_size: int, width: int) -> None:
        layers = nn.Linear(3 * image_size**2, width), nn.SiLU(), nn.Linear(width, embedding_dim)
        super().__init__(nn.Flatten(), *layers)
        self.embedding_dim = embedding_dim


@pytest.mark.parametrize("head", [{}, {"sample_rate": 0.2}, {"kind": "linear"}])
def test_four_micro_batches_are_one_large_batch(tmp_path, monkeypatch, head):
    monkeypatch.setitem(registry.BACKBONES, "plain", Plain)
    tiny.write_records(tmp_path / "records", classes=80)
    curves = [
        losses(
            tmp_path,
            run={"output": str(tmp_path / str(parts))},
            data={"accumulation": parts},
            model={"name": "plain"},
            head=head,
            optim={"lr": 0.05},
        )
        for parts in (1, 4)
    ]
    assert curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_both_optimizers_use_the_rate_of_the_schedule(tmp_path):
    optim = {"lr": 0.4, "head_lr_factor": 10.0}
    job = tiny.job(tmp_path, optim=optim, schedule={"steps": 4, "warmup": 0.5})
    for step, rate in enumerate([0.2, 0.4, 0.4, 0.2]):
        assert loop.set_learning_rate(job, step) == pytest.approx(rate)
        assert [group["lr"] for group in job.optimizer.param_groups] == [pytest.approx(rate)] * 2
        assert job.head_optimizer.param_groups[0]["lr"] == pytest.approx(10 * rate)


@pytest.mark.parametrize("limit, longest", [(0.5, 0.5), (0.0, None)])
def test_the_gradient_is_clipped_as_told(tmp_path, limit, longest):
    optim = {"clip_grad_norm": limit, "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}
    job = tiny.job(tmp_path, optim=optim)
    before = [p.detach().clone() for p in job.backbone.parameters()]
    outcome = loop.train_step(job, next(job.loader.steps(0, 1)), 0, Guard(job))
    moved = [new.detach() - old for new, old in zip(job.backbone.parameters(), before, strict=True)]
    assert outcome.grad_norm > 0.5
    length = float(nn.utils.get_total_norm(moved))
    assert length == pytest.approx(longest or float(outcome.grad_norm), rel=1e-4)


@pytest.mark.parametrize(
    "storage, margin",
    [("fp32", "adaface"), ("bf16", "curricularface"), ("int8_rowwise", "elastic_arcface")],
)
def test_a_sampled_run_ends_with_the_same_bits_whenever_it_was_saved(tmp_path, storage, margin):
    """Rows that steps left out are saved as they are, with what they owe; who reads them gets what dense SGD makes. And
    the margin goes on with its running numbers and draws."""
    head, ends = {"sample_rate": 0.5, "storage": storage, "tile_mb": 0.001, "margin": margin}, []
    for name, every in (("at the end", 0), ("often", 3)):
        folder = tmp_path / name
        tiny.write_records(folder / "records", classes=40, samples=2)
        run(folder, head=head, run={"checkpoint_every": every, "keep_last": 9})
        ends.append(checkpoint.latest(folder / "run" / "checkpoints"))
    shutil.rmtree(ends[1])
    shutil.rmtree(ends[1].with_name("step-00000009"))
    job = tiny.job(folder, head=head)
    restore(job, Found(ends[1].with_name("step-00000006")))
    assert (job.head.shard.owed[0] < 6).any()
    job.head_optimizer.catch_up()
    told = stored_rows(checkpoint.load(ends[1].with_name("step-00000006")), "head/weight", 3, 30).fp32()
    torch.testing.assert_close(told, job.head.centres()[3:30], rtol=0.02 if storage != "fp32" else 1e-6, atol=1e-6)
    run(folder, resume=True, head=head, run={"checkpoint_every": 3})
    for file in ends[0].glob("*.safetensors"):
        assert file.read_bytes() == (ends[1] / file.name).read_bytes()


# -- steps that are not finite ------------------------------------------------------------------------


@contextlib.contextmanager
def poisoned_input(job):
    """The images of the steps inside hold a NaN, which reaches loss, gradients and batch statistics."""
    sound = job.to_input

    def poisoned(images):
        images = sound(images)
        images[0, 0, 0, 0] = torch.nan
        return images

    job.to_input = poisoned
    yield
    job.to_input = sound


@pytest.fixture
def poisoned_steps(monkeypatch):
    """A set of steps whose images are spoilt."""
    numbers, step_as_it_is = set(), loop.train_step

    def train_step(job, batch, step, guard):
        with poisoned_input(job) if step in numbers else contextlib.nullcontext():
            return step_as_it_is(job, batch, step, guard)

    monkeypatch.setattr(loop, "train_step", train_step)
    return numbers


def everything_trained(job):
    """All numbers that a step may change, by name. Copies."""
    found = {f"backbone {name}": t for name, t in job.backbone.state_dict().items() if t.is_floating_point()}
    found |= {f"head {name}": t for name, t in job.head.state_dict().items()}
    for optimizer in filter(None, (job.optimizer, job.head_optimizer)):
        for i, values in enumerate(optimizer.state.values()):
            for name, value in values.items():
                found[f"{type(optimizer).__name__} {i} {name}"] = torch.as_tensor(value)
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.mark.parametrize("good_steps", [0, 2])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"head": {"sample_rate": 0.5}},
        {"data": {"accumulation": 2}},
        {"optim": {"name": "adamw", "lr": 1e-3}},
        {"optim": {"name": "lars"}},
        {"head": {"kind": "linear"}},
        {"precision": {"compute": "fp16", "init_scale": 1024.0}},
    ],
    ids=str,
)
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(tmp_path, sections, good_steps):
    job = tiny.job(tmp_path, **sections)
    job.model.train()
    guard = Guard(job)
    batches = job.loader.steps(0, good_steps + 2)

    def step(number):
        loop.set_learning_rate(job, number)
        return loop.train_step(job, next(batches), number, guard)

    assert not any(bool(step(number).skipped) for number in range(good_steps))
    before = everything_trained(job)
    with poisoned_input(job):
        assert bool(step(good_steps).skipped)
    after = everything_trained(job)
    for name, tensor in after.items():  # an optimizer may make its state in its first step, as zeros
        assert torch.equal(tensor, before.get(name, torch.zeros_like(tensor))), name
    assert not bool(step(good_steps + 1).skipped)
    moved = everything_trained(job)
    assert all(torch.isfinite(tensor).all() for tensor in moved.values())
    fixed = ["backbone features.weight"]  # at 1
    assert [n for n in moved if n.endswith("weight") and torch.equal(before[n], moved[n])] == fixed


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path, poisoned_steps):
    poisoned_steps |= {1, 4, 5, 6}
    with pytest.raises(UserError, match=r"step 7: 3 steps in a row .*run\.max_skipped.*lower optim\.lr"):
        run(tmp_path, run={"max_skipped": 3, "checkpoint_every": 2})
    assert not (tmp_path / "run" / "result.json").exists()
    *_, end = read_events(tmp_path / "run" / "events.jsonl")
    assert isinstance(end, EndEvent) and end.reason.startswith("DivergedError: step 7")
    # Nothing was saved amid the bad ones: what was due at step 2 comes at step 3, and at step 6 nothing.
    saved = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in saved] == ["step-00000003", "step-00000004"]
    with pytest.raises(UserError, match="step 7: 3 steps in a row"):
        run(tmp_path, resume=True, run={"max_skipped": 3, "checkpoint_every": 2})
    poisoned_steps.clear()
    result, events = run(tmp_path, resume=True, run={"max_skipped": 3, "checkpoint_every": 2})
    assert result["steps"] == 10 and steps(events)[-1].skipped_steps == 1
    assert [event.step for event in steps(events) if event.loss is None] == [2]


def test_fp16_finds_a_loss_scale_and_trains(tmp_path):
    sections = {"precision": {"compute": "fp16", "init_scale": 2.0**30}, "run": {"max_skipped": 30}}
    told = steps(run(tmp_path, schedule={"steps": 40}, **sections)[1])
    skipped = [event.skipped_steps for event in told]
    assert skipped[0] == 1 and 1 < skipped[-1] < 25  # the first scales overflow, then one holds
    assert skipped[-1] == skipped[-10]
    assert told[-1].loss < 0.5 * told[0].loss
    stored = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints")).state["scaler"]
    assert stored["scale"] == 2.0 ** (30 - skipped[-1])


def test_the_loss_scale_does_not_reach_the_weights(tmp_path):
    after = []
    for scale in (1.0, 4096.0):
        job = tiny.job(tmp_path, precision={"compute": "fp16", "init_scale": scale})
        loop.train_step(job, next(job.loader.steps(0, 1)), 0, Guard(job))
        after.append({"centres": job.head.weight.detach(), "fc": job.backbone.fc.weight.detach()})
    torch.testing.assert_close(after[0], after[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("width", "channels_last"), [(8, False), (16, True)])
def test_narrow_convolutions_do_not_crash(tmp_path, caplog, width, channels_last):
    """In PyTorch 2.13 a narrow 1x1 convolution of stride 2 in channels_last ends the process on a CPU."""
    job = tiny.job(tmp_path, model={"name": "iresnet18", "width": width})
    assert job.arithmetic.channels_last is channels_last
    assert ("precision.channels_last is off" in caplog.text) is not channels_last
    guard = Guard(job)
    for step, batch in enumerate(job.loader.steps(0, 2)):
        loop.train_step(job, batch, step, guard)
