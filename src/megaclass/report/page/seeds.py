"""Which rows are seeds of one training: what differs between them is chance alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from megaclass.report.page.sources import Source
from megaclass.report.page.words import key_of

# Settings that change how a training is run, and nothing of what comes out of it.
_RUN = ("run.", "data.workers")


def settings_of(case: Mapping[str, Any]) -> Any:
    """Those that change what is trained."""
    settings = case.get("settings") or {}
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if not key.startswith(_RUN)}


def without_seed(case: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key != "seed"}


def trainings(sources: Iterable[Source]) -> list[list[Source]]:
    """The rows of each training, by seed; of a seed that was measured again the latest. The training that was measured
    last is the last."""
    found: dict[str, dict[str, Source]] = {}
    for source in sorted(sources, key=lambda source: (str(source.row.measured_at), source.number)):
        case = source.row.case
        training = without_seed(case) | {"settings": settings_of(case), "by": source.row.implementation}
        key = key_of(training | {"on": source.machine})
        seeds = found.pop(key, {})  # to the end
        found[key] = seeds | {key_of({"": case.get("seed")}): source}
    return [sorted(seeds.values(), key=lambda source: source.number) for seeds in found.values()]
