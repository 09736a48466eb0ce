"""``megaclass bench head``: from the words of a user to cases."""

from dataclasses import replace
from typing import Any

import torch

from megaclass.bench.arguments import check_timeout, counts, device_type, names, on_cores, rates
from megaclass.bench.head import cases
from megaclass.bench.head.benchmark import work
from megaclass.bench.head.cases import HeadCase
from megaclass.bench.peers import PEERS
from megaclass.bench.runner import Entry
from megaclass.bench.sweep import Planned
from megaclass.errors import UserError, lookup

MALLOC = ("tuned", "untuned", "both")


def planned(options: Any) -> list[Planned]:
    """Every case that the options ask for, and who takes part in it. UserError: options that make no sense."""
    device = device_type(options.device)
    _check_peer(options)
    check_timeout(options.timeout)
    found = cases.sweep(
        {
            "num_classes": counts("num-classes", options.num_classes),
            "embedding_dim": counts("embedding-dim", options.embedding_dim),
            "batch_size": counts("batch-size", options.batch_size),
            "sample_rate": rates("sample-rate", options.sample_rate),
            "precision": names(options.precision),
            "storage": names(options.storage),
            "world_size": counts("world-size", options.world_size),
        },
        simulate_ranks=options.simulate_ranks,
        margin=options.margin,
        kernels=options.kernels,
        device=device,
        steps=options.steps,
        warmup=options.warmup,
        seed=options.seed,
    )
    gpus = torch.cuda.device_count()
    plan = []
    for case in on_cores(found, options.threads):
        who = entries(case, options.peer, options.peer_path, options.peer_malloc)
        plan.append(Planned(case=case, entries=who, skip=case.why_skipped(gpus), weight=_weight(case, who)))
    return plan


def entries(case: HeadCase, peer: str, path: str, malloc: str) -> list[Entry]:
    """Ours, and the peer if one is asked for: on a CPU once for each way to run its allocator."""
    found = [Entry()]
    if peer:
        module = PEERS[peer]
        base = Entry(
            implementation=peer,
            changes=module.parameters(case),
            options={"path": str(module.locate(path))},
        )
        ways = ([*module.MALLOC] if malloc == "both" else [malloc]) if case.device == "cpu" else []
        found += [replace(base, extra={"malloc": name}, variables=module.MALLOC[name]) for name in ways] or [
            base
        ]
    return found


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
