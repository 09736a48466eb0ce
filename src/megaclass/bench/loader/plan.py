"""From the words of a user to rows: workload by workload, every loader on the same images."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from megaclass import distributed
from megaclass.bench.cases import names, share_of_cores
from megaclass.bench.loader.cases import SOURCES, WORKLOADS, LoaderCase
from megaclass.bench.loader.images import ImageSet, write_images
from megaclass.bench.peers import LOADERS
from megaclass.bench.runner import Entry, run_case, skipped
from megaclass.data.open import open_dataset
from megaclass.errors import UserError, lookup
from megaclass.rows import Row

ALL_PEERS = ",".join(LOADERS)


class Watcher(Protocol):
    """Is told how far the measurement is."""

    def begins(self, number: int, total: int, case: LoaderCase, left_s: float | None) -> None: ...

    def step(self, done: int, total: int) -> None: ...


def planned(options: Any) -> list[LoaderCase]:
    """A case for each workload that the options ask for. UserError: options that make no sense."""
    try:
        device = distributed.pick_device(options.device).type
    except UserError as error:
        raise UserError(str(error).replace("run.device", "--device")) from None
    if not options.timeout > 0:
        raise UserError(f"--timeout: {options.timeout:g} is not a positive number of seconds")
    if options.images < 0:
        raise UserError(
            f"--images: {options.images} is too few; use 1 or more, or 0 for as many as are usual"
        )
    if options.data:
        open_dataset(options.data)
    for source in names(options.source):
        lookup(dict.fromkeys(SOURCES), source, "source")
    for peer in _peers(options):
        lookup(LOADERS, peer, "peer")
    found = [
        LoaderCase(
            workload=name,
            batch_size=options.batch_size,
            batches=options.batches or lookup(WORKLOADS, name, "workload").batches,
            threads=options.threads or share_of_cores(1),
            prefetch=options.prefetch,
            device=device,
            rounds=options.rounds,
            warmup=options.warmup,
            seed=options.seed,
        )
        for name in names(options.workload)
    ]
    for case in found:
        case.check()
    return found


def measure(plan: list[LoaderCase], options: Any, watcher: Watcher) -> Iterator[list[Row]]:
    """The rows of one case after the other. A loader that fails is a row, and the others go on.

    Raises UserError: a set of images that cannot be measured.
    """
    for number, case in enumerate(plan):
        watcher.begins(number + 1, len(plan), case, None)
        with tempfile.TemporaryDirectory(prefix="megaclass-loader-") as directory:
            images = write_images(
                WORKLOADS[case.workload],
                Path(directory),
                data=options.data,
                images=options.images,
                seed=case.seed,
                threads=case.threads,
            )
            found = _entries(images, names(options.source), _peers(options))
            rows = list(run_case(case, found, options.timeout, watcher.step))
        yield rows + _missing(case, _peers(options))


def _peers(options: Any) -> list[str]:
    return [name for name in names(options.peer) if name and name != "none"]


def _entries(images: ImageSet, sources: list[str], peers: list[str]) -> list[Entry]:
    """Who takes part: bare decode, ours from every source, and each peer that is installed from those that it
    reads."""
    directories = {"records": str(images.records.parent), "folder": str(images.folder), "synthetic": ""}
    who = [("simplejpeg", "folder"), *(("megaclass", source) for source in sources)]
    for peer in peers:
        if not LOADERS[peer].missing():
            who += [(peer, source) for source in LOADERS[peer].SOURCES]
    return [
        Entry(
            implementation=implementation,
            # A peer delivers to host memory; its process is to leave the GPU alone.
            changes={"source": source} | ({} if implementation == "megaclass" else {"device": "cpu"}),
            extra=images.facts(),
            options={"directory": directories[source]},
        )
        for implementation, source in who
    ]


def _missing(case: LoaderCase, peers: list[str]) -> list[Row]:
    """Rows of the peers that are not installed."""
    return [
        skipped(replace(case, source=LOADERS[peer].SOURCES[0]), reason, peer)
        for peer in peers
        if (reason := LOADERS[peer].missing())
    ]
