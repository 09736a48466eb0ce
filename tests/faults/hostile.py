"""Input that is meant to harm, or absurd."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faults.bench import Bench
from faults.scenes import Fault, Found
from hostile_cases import CASES, Case, faults_of


def cases(bench: Bench, moments: random.Random) -> Iterator[Fault]:
    for name, case in CASES.items():
        yield Fault(name, partial(_strike, case))


def _strike(case: Case, bench: Bench, folder: Path, most_lost: int | None) -> Found:
    folder.mkdir(parents=True, exist_ok=True)
    return Found(faults_of(case, folder))
