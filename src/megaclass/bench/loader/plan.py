"""From the words of a user to rows: workload by workload, every loader on the same images."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from megaclass import distributed
from megaclass.bench.cases import names, share_of_cores
from megaclass.bench.loader.cases import EVALUATION, LOADERS, SOURCES, WORKLOADS, LoaderCase
from megaclass.bench.loader.images import ImageSet, write_images
from megaclass.bench.peers import LOADERS as PEERS
from megaclass.bench.peers import dali
from megaclass.bench.runner import Entry, run_case, skipped
from megaclass.data.open import open_dataset
from megaclass.errors import UserError, lookup
from megaclass.rows import Row


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
    for loader in names(options.loader):
        lookup(dict.fromkeys(LOADERS), loader, "loader")
    for peer in _peers(options):
        lookup(PEERS, peer, "peer")
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
            wanted = _wanted(case, names(options.source), names(options.loader), _peers(options))
            found = [entry.of(images) for entry in wanted if not entry.missing]
            rows = list(run_case(case, found, options.timeout, watcher.step))
        yield rows + [entry.skipped(case, images) for entry in wanted if entry.missing]


def _peers(options: Any) -> list[str]:
    return [name for name in names(options.peer) if name and name != "none"]


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """Who is to take part. loader: of ours, where it is not the one of threads. missing: why it cannot."""

    implementation: str
    source: str
    loader: str = ""
    on_device: bool = False
    missing: str = ""

    def of(self, images: ImageSet) -> Entry:
        directories = {"records": str(images.records.parent), "folder": str(images.folder), "synthetic": ""}
        return Entry(
            implementation=self.implementation,
            changes=self._changes,
            extra=self._extra(images),
            options={"directory": directories[self.source]} | self._loader,
        )

    def skipped(self, case: LoaderCase, images: ImageSet) -> Row:
        row = skipped(replace(case, **self._changes), self.missing, self.implementation)
        return replace(row, case=row.case | self._extra(images))

    def _extra(self, images: ImageSet) -> dict[str, Any]:
        return images.facts() | self._loader

    @property
    def _changes(self) -> dict[str, Any]:
        # What delivers to host memory is to leave the GPU alone.
        return {"source": self.source} | ({} if self.on_device else {"device": "cpu"})

    @property
    def _loader(self) -> dict[str, Any]:
        return {"loader": self.loader} if self.loader else {}


def _wanted(case: LoaderCase, sources: list[str], loaders: list[str], peers: list[str]) -> list[_Wanted]:
    """Bare decode; ours, by threads from every source and by DALI from each that it decodes; the peers from those
    that they read."""
    found = [_Wanted(implementation="simplejpeg", source="folder")]
    for loader in loaders:
        by_dali = loader == "dali"
        found += [
            _Wanted(
                implementation="megaclass",
                source=source,
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
            _Wanted(implementation=peer, source=source, on_device=module.ON_DEVICE, missing=missing)
            for source in (module.SOURCES[:1] if missing else module.SOURCES)
        ]
    return found


def _why_no_dali(case: LoaderCase) -> str:
    """Why our loader cannot have DALI decode here, or an empty string."""
    return "evaluations are decoded by threads always" if case.workload == EVALUATION else dali.missing(case)
