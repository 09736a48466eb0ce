"""Numbers that go wrong: what is left out, what is told, what ends a run and what takes it back."""

import json

import pytest
import torch

import tiny
from megaclass import checkpoint
from megaclass.errors import UserError
from megaclass.results.events import StartEvent, StepEvent, WarningEvent, read_events
from megaclass.train import guard, loop, resume
from megaclass.train.guard import DivergedError, Guard, Outcome
from megaclass.train.progress import Progress


@pytest.fixture
def losses(monkeypatch):
    """What the guard of a run gets to see of some steps (from 0) in place of the loss."""
    told, as_it_is = {}, Guard.refuses
    monkeypatch.setattr(
        Guard,
        "refuses",
        lambda self, step, loss: as_it_is(self, step, loss.new_tensor(told.get(step, float(loss)))),
    )
    monkeypatch.setattr(guard, "_SETTLED_STEPS", 5)
    return told


def run(folder, again=False, **sections):
    sections = {"schedule": {"steps": 16}} | sections
    sections["run"] = {"checkpoint_every": 4, "keep_last": 9} | sections.get("run", {})
    _, result = tiny.run(folder, again, **sections)
    return result, read_events(folder / "run" / "events.jsonl")


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


def test_a_spike_is_told_and_its_samples_are_noted(tmp_path, losses):
    losses[8] = 1000.0
    result, events = run(tmp_path)
    assert result["steps"] == 16 and of(events, StepEvent)[-1].skipped_steps == 0
    (warning,) = of(events, WarningEvent)
    assert warning.step == 9 and "step 9: loss" in warning.message
    (line,) = (tmp_path / "run" / "bad_batches.jsonl").read_text().splitlines()
    job = tiny.job(tmp_path)
    noted = json.loads(line)
    assert noted["step"] == 9 and noted["samples"] == job.samples_of_step(8).tolist()
    batch = next(job.loader.steps(8, 9))
    assert batch.labels.tolist() == [index // tiny.SAMPLES for index in noted["samples"]]


def test_a_spike_is_left_out_where_that_is_asked_for(tmp_path, losses):
    losses[8] = 1000.0
    result, events = run(tmp_path, run={"on_divergence": "skip"})
    assert result["steps"] == 16 and of(events, StepEvent)[-1].skipped_steps == 1


def test_a_divergence_goes_back_at_half_the_rate_and_gives_up_in_the_end(tmp_path, losses):
    losses |= dict.fromkeys((9, 10, 11), 1000.0)
    with pytest.raises(
        UserError, match=r"step 12: 3 steps in a row .*spiked .*step-00000008 is whole: lower optim\.lr"
    ):
        run(tmp_path, run={"on_divergence": "rollback", "max_skipped": 3})
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert [event.resumed_from_step for event in of(events, StartEvent)] == [None, 8, 8, 8]
    told = [event.message for event in of(events, WarningEvent) if "back to" in event.message]
    assert [message.rpartition("with ")[2] for message in told] == [
        f"{factor} times the learning rate" for factor in (0.5, 0.25, 0.125)
    ]
    rates = {event.step: event.learning_rate for event in of(events, StepEvent)}
    assert rates[9] == pytest.approx(0.01 * (1 - 8 / 16) / 8)
    losses.clear()
    result, events = run(tmp_path, again=True, run={"on_divergence": "rollback", "max_skipped": 3})
    assert result["steps"] == 16


def test_the_lower_rate_is_part_of_the_checkpoint(tmp_path, losses, monkeypatch):
    losses |= {step: float("inf") for step in (5, 6, 7)}
    as_it_is = Guard.check

    def once(self, progress, at_end):
        try:
            as_it_is(self, progress, at_end)
        except DivergedError:
            losses.clear()
            raise

    monkeypatch.setattr(Guard, "check", once)
    result, _ = run(tmp_path, run={"on_divergence": "rollback", "max_skipped": 3})
    assert result["steps"] == 16
    last = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))
    assert last.state["progress"]["rate_factor"] == 0.5


def test_skipping_every_other_step_is_no_training(tmp_path, losses):
    losses |= {step: float("nan") for step in (1, 3, 5, 6)}
    with pytest.raises(UserError, match=r"step 7: 4 of 7 steps had a loss .*run\.max_skipped_share"):
        run(tmp_path, run={"max_skipped": 10})


@pytest.mark.parametrize("where", ["weight", "momentum", "norm"])
def test_weights_that_are_not_finite_are_not_saved_over_good_ones(tmp_path, monkeypatch, where):
    as_it_is = loop.train_step

    def poison(job, batch, step, *rest):
        outcome = as_it_is(job, batch, step, *rest)
        if step == 7:
            tensors = {
                "weight": next(job.backbone.parameters()),
                "momentum": job.head.shard.momentum.data,
                "norm": next(b for b in job.backbone.buffers() if b.is_floating_point()),
            }
            tensors[where].data[(0,) * tensors[where].ndim] = torch.nan
        return outcome

    monkeypatch.setattr(loop, "train_step", poison)
    with pytest.raises(UserError, match=r"holds numbers that are not finite; step-00000004 is whole"):
        run(tmp_path)
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").name == "step-00000004"


def test_centres_that_have_vanished_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "_VANISHED", 1e3)
    _, events = run(tmp_path, schedule={"steps": 4})
    (warning,) = of(events, WarningEvent)
    assert f"{tiny.CLASSES} class centres have a norm below 1000" in warning.message


def test_a_lasting_rise_is_followed_and_a_resumed_guard_judges_like_the_one_before(tmp_path):
    job, losses = tiny.job(tmp_path), [4.0] * 60 + [40.0] * 300
    alone, progress = Guard(job), Progress()

    def spikes(one, step):
        outcome = Outcome(torch.tensor(losses[step]), torch.ones(()), torch.tensor(False), torch.tensor(False))
        one.refuses(step, outcome.loss)
        one.end_step(step, outcome)
        return one.read(progress) is not None

    told = [spikes(alone, step) for step in range(100)]
    assert not any(told[:60]) and all(told[60:80])
    resumed = Guard(job, progress)
    for step in range(100, 360):
        assert spikes(resumed, step) == spikes(alone, step)
    assert progress.loss_mean > 15
    earlier = Guard(job, Progress(step=100))  # of a version that kept no mean: it begins anew
    assert not any(spikes(earlier, step) for step in range(100, 200))


def test_a_loss_scale_that_collapses_ends_the_run(tmp_path, monkeypatch):
    """Gradients that overflow at every scale: 16, 8, 4 and 2 are a search, and at 1 there is nothing left to find."""
    as_it_is = loop.update

    def update(job, *rest):
        next(job.backbone.parameters()).grad.fill_(torch.inf)
        return as_it_is(job, *rest)

    monkeypatch.setattr(loop, "update", update)
    with pytest.raises(UserError, match="step 14: 10 steps in a row"):
        run(tmp_path, schedule={"steps": 40}, precision={"compute": "fp16", "init_scale": 16.0})
