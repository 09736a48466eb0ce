"""From the words of a user to cases, a workload each, of which every loader gets the same images."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from megaclass.bench.arguments import check_timeout, device_type, names, share_of_cores
from megaclass.bench.old_loader.cases import EVALUATION, LOADERS, SOURCES, WORKLOADS, LoaderCase
from megaclass.bench.old_loader.images import ImageSet, write_images
from megaclass.bench.peers import LOADERS as PEERS
from megaclass.bench.peers import dali
from megaclass.bench.runner import Entry, run_case
from megaclass.bench.sweep import Planned
from megaclass.data.open import open_dataset
from megaclass.errors import UserError, lookup
from megaclass.results.rows import Row


def planned(options: Any) -> list[Planned]:
    """A case for each workload that the options ask for. UserError: options that make no sense."""
    device = device_type(options.device)
    check_timeout(options.timeout)
    if options.images < 0:
        raise UserError(
            f"--images: {options.images} is too few; use 1 or more, or 0 for as many as are usual"
        )
    if options.data:
        open_dataset(options.data)
    sources, loaders, peers = names(options.source), names(options.loader), _peers(options)
    for source in sources:
        lookup(dict.fromkeys(SOURCES), source, "source")
    for loader in loaders:
        lookup(dict.fromkeys(LOADERS), loader, "loader")
    for peer in peers:
        lookup(PEERS, peer, "peer")
    plan = []
    for name in names(options.workload):
        case = LoaderCase(
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
        case.check()
        images = {"data": options.data, "images": options.images}
        plan.append(Planned(case=case, entries=_entries(case, sources, loaders, peers), identity=images))
    return plan


def on_images(options: Any) -> Callable[..., Iterator[Row]]:
    """What runs a case: it first writes the images that all loaders of the case read.

    Raises UserError: a set of images that cannot be measured.
    """
    return partial(_run_on_images, options.data, options.images)


def _run_on_images(
    data: str, images: int, case: LoaderCase, found: list[Entry], timeout_s: float, on_step: Any
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="megaclass-loader-") as directory:
        written = write_images(
            WORKLOADS[case.workload],
            Path(directory),
            data=data,
            images=images,
            seed=case.seed,
            threads=case.threads,
        )
        yield from run_case(case, [_reading(written, entry) for entry in found], timeout_s, on_step)


def _reading(images: ImageSet, entry: Entry) -> Entry:
    """The entry, told where its images lie."""
    directories = {"records": str(images.records.parent), "folder": str(images.folder), "synthetic": ""}
    return replace(
        entry,
        extra=images.facts() | entry.extra,
        options={"directory": directories[entry.changes["source"]]} | entry.extra,
    )


def _peers(options: Any) -> list[str]:
    return [name for name in names(options.peer) if name and name != "none"]


def _entry(
    implementation: str, source: str, *, loader: str = "", on_device: bool = False, missing: str = ""
) -> Entry:
    """loader: of ours, where it is not the one of threads. on_device: that it delivers there."""
    # What delivers to host memory is to leave the GPU alone.
    changes = {"source": source} | ({} if on_device else {"device": "cpu"})
    return Entry(
        implementation=implementation,
        changes=changes,
        extra={"loader": loader} if loader else {},
        missing=missing,
    )


def _entries(case: LoaderCase, sources: list[str], loaders: list[str], peers: list[str]) -> list[Entry]:
    """Bare decode; ours, by threads from every source and by DALI from each that it decodes; the peers from those
    that they read."""
    found = [_entry("simplejpeg", "folder")]
    for loader in loaders:
        by_dali = loader == "dali"
        found += [
            _entry(
                "megaclass",
                source,
                loader=loader if by_dali else "",
                on_device=True,
                missing=_why_no_dali(case) if by_dali else "",
            )
            for source in sources
            if not (by_dali and source == "synthetic")
        ]
    for peer in peers:
        module = PEERS[peer]
        missing = module.missing(case)
        found += [
            _entry(peer, source, on_device=module.ON_DEVICE, missing=missing)
            for source in (module.SOURCES[:1] if missing else module.SOURCES)
        ]
    return found


def _why_no_dali(case: LoaderCase) -> str:
    """Why our loader cannot have DALI decode here, or an empty string."""
    return "evaluations are decoded by threads always" if case.workload == EVALUATION else dali.missing(case)
