"""``megaclass bench head``: from the words of a user to rows, case by case."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch

from megaclass import distributed
from megaclass.bench import cases
from megaclass.bench.cases import HeadCase
from megaclass.bench.head_benchmark import work
from megaclass.bench.peers import PEERS
from megaclass.bench.runner import Entry, entries, run_case, skipped
from megaclass.errors import UserError, lookup
from megaclass.rows import Row

MALLOC = ("tuned", "untuned", "both")


class Watcher(Protocol):
    """Is told how far a sweep is; ``left_s`` is None as long as nothing is known."""

    def begins(self, number: int, total: int, case: HeadCase, left_s: float | None) -> None: ...

    def step(self, done: int, total: int) -> None: ...


def planned(options: Any) -> list[tuple[HeadCase, list[Entry]]]:
    """Every case that the options ask for, and who takes part in it. UserError: options that make no sense."""
    try:
        device = distributed.pick_device(options.device).type
    except UserError as error:
        raise UserError(str(error).replace("run.device", "--device")) from None
    _check_peer(options)
    if not options.timeout > 0:
        raise UserError(f"--timeout: {options.timeout:g} is not a positive number of seconds")
    found = cases.sweep(
        {
            "num_classes": cases.counts("num-classes", options.num_classes),
            "embedding_dim": cases.counts("embedding-dim", options.embedding_dim),
            "batch_size": cases.counts("batch-size", options.batch_size),
            "sample_rate": cases.rates("sample-rate", options.sample_rate),
            "precision": cases.names(options.precision),
            "storage": cases.names(options.storage),
            "world_size": cases.counts("world-size", options.world_size),
        },
        simulate_ranks=options.simulate_ranks,
        margin=options.margin,
        kernels=options.kernels,
        placement=options.placement,
        device=device,
        steps=options.steps,
        warmup=options.warmup,
        seed=options.seed,
        threads=1 if options.threads == 0 else options.threads,
    )
    if options.threads == 0:
        found = [replace(case, threads=cases.share_of_cores(case.world_size)) for case in found]
    return [(case, entries(case, options.peer, options.peer_path, options.peer_malloc)) for case in found]


def measure(
    plan: list[tuple[HeadCase, list[Entry]]], timeout_s: float, watcher: Watcher
) -> Iterator[list[Row]]:
    """The rows of one case after the other. A case that fails is a row, and the sweep goes on."""
    gpus = torch.cuda.device_count()
    weights = [_weight(case, found) for case, found in plan]
    begin = time.monotonic()
    for number, (case, found) in enumerate(plan):
        done, left = sum(weights[:number]), sum(weights[number:])
        watcher.begins(
            number + 1, len(plan), case, (time.monotonic() - begin) * left / done if number else None
        )
        reason = case.why_skipped(gpus)
        yield [skipped(case, reason)] if reason else list(run_case(case, found, timeout_s, watcher.step))


def _check_peer(options: Any) -> None:
    if options.peer:
        lookup({**PEERS}, options.peer, "peer")
        if not options.peer_path:
            raise UserError(f"--peer {options.peer} needs --peer-path: the directory with its code")
        PEERS[options.peer].locate(options.peer_path)
    elif options.peer_path:
        raise UserError("--peer-path goes with --peer arcface_torch")
    lookup(dict.fromkeys(MALLOC), options.peer_malloc, "--peer-malloc")


def _weight(case: HeadCase, found: list[Entry]) -> float:
    """How long a case may take, in any unit: starting processes, and the work of all steps."""
    start = 2e12
    return sum(
        start + work(entry.implementation, case)["flops"] * (case.steps + case.warmup) for entry in found
    )
