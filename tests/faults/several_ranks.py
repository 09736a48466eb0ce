"""Faults of several ranks: signals to all or to one, lost ranks, other numbers of ranks, and ranks that disagree."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import tiny
from faults import scenes
from faults.bench import EVERY, INLINE, SAVED, STEPS, Bench
from faults.child import Plan
from faults.one_rank import KILLED, SIGNALS, of_save
from faults.scenes import Fault, scene

TEMPORARY = 75
TWO: dict[str, Any] = {"recipe": "smooth", "ranks": 2}


def signals_of_ranks(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for name, (status, _) in SIGNALS.items():
        for told in ((0, 1), (0,), (1,)):
            for slow_s in (0.0, 0.1):
                step = moments.choice((SAVED, moments.randrange(1, STEPS - 2)))  # ranks agree a step later
                plans = {rank: Plan(slow_s=slow_s) for rank in (0, 1)}
                for rank in told:
                    plans[rank] = Plan(name, step=step, delay_s=moments.uniform(0.0001, 0.003), slow_s=slow_s)
                ranks = " and ".join(map(str, told))
                yield scene(
                    f"{name} to rank {ranks} after step {step}, {slow_s} s an fsync",
                    plans=plans,
                    statuses={0: (status,), 1: (status,)},
                    words=(),
                    within_s=10,
                    **TWO,
                )


def killed_ranks(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    plans = [
        (rank, Plan("SIGKILL", step=moments.randrange(1, STEPS - 1), delay_s=moments.uniform(0, 0.005)))
        for rank in (0, 1) * 5
    ]
    in_save = [call for call in of_save(bench, SAVED) if "replicated" in call or "manifest" in call]
    plans += [(0, Plan("SIGKILL", call)) for call in moments.sample(in_save, 3)]
    for number, (rank, plan) in enumerate(plans):
        statuses = {rank: (KILLED,), 1 - rank: (TEMPORARY,)}
        name = f"{number}: rank {rank} at {plan.call or f'step {plan.step}'}"
        yield scene(name, plans={rank: plan}, statuses=statuses, **TWO)


def stopped_ranks(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    words = (*INLINE, "--run.heartbeat_s", "1")
    for rank in (0, 1):
        for step in (1, SAVED, STEPS - 1):
            how: dict[str, Any] = {"statuses": {1 - rank: (TEMPORARY,)}, "words": words, "within_s": 10}
            yield scene(f"rank {rank} after step {step}", plans={rank: Plan("SIGSTOP", step=step)}, **how, **TWO)


def torchrun(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for rank, step, restarts in ((0, 1, 1), (1, 1, 1), (0, 7, 1), (1, 7, 1), (0, 7, 0), (1, 7, 0)):
        plan = Plan("SIGKILL", step=step, rank=rank)
        happen = partial(scenes.under_torchrun, plan=plan, restarts=restarts, statuses=(0,) if restarts else (1,))
        yield Fault(f"rank {rank} killed after step {step}, {restarts} restarts", happen)
    for name, statuses in {"SIGTERM": (1, -15, 143), "SIGINT": (1, -2, 130)}.items():
        happen = partial(
            scenes.under_torchrun, plan=Plan("none", step=EVERY), restarts=0, statuses=statuses, to_agent=name
        )
        yield Fault(f"{name} to torchrun", happen)


def other_ranks(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for before in range(1, 5):
        for then in range(1, 5):
            plans = {rank: Plan("SIGKILL", step=SAVED + 1) for rank in range(before)}
            statuses = dict.fromkeys(plans, (KILLED, TEMPORARY))
            how: dict[str, Any] = {"recipe": "smooth", "ranks": before, "then": then}
            yield scene(f"{before} to {then}", plans=plans, statuses=statuses, **how)


DIFFERENT = {
    "optim.lr": "0.02", "optim.momentum": "0.8", "optim.weight_decay": "0.001", "optim.clip_grad_norm": "4.0",
    "optim.ema_decay": "0.25", "optim.head_lr_factor": "2.0", "schedule.steps": "13", "data.global_batch_size": "8",
    "data.accumulation": "2", "run.seed": "1", "run.log_every": "2", "run.checkpoint_every": "4",
    "run.max_skipped": "51", "head.scale": "32.0", "head.m2": "0.4", "head.sample_rate": "0.75",
    "head.gradient": "exact", "model.dropout": "0.1", "model.embedding_dim": "32", "model.width": "16",
    "augment.rotate_degrees": "5.0", "precision.compute": "bf16",
}  # fmt: skip


def disagreements(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for setting, other in DIFFERENT.items():
        yield Fault(setting, partial(scenes.disagreeing, setting=setting, values=(bench.value(setting), other)))
    for name, classes, samples in (("more images", tiny.CLASSES, 5), ("more classes", tiny.CLASSES + 1, 4)):
        other = str(tiny.write_records(bench.folder / name, classes, samples))
        happen = partial(
            scenes.disagreeing,
            setting="data.path",
            values=(str(bench.folder / "records"), other),
            named=(str(tiny.CLASSES * tiny.SAMPLES), str(classes * samples)),
        )
        yield Fault(f"data.path: {name}", happen)
