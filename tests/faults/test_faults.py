"""A fault of each kind of the campaign: `make faults` runs them all."""

import random

import pytest

from faults.bench import Bench
from faults.campaign import SEED, happen
from faults.kinds import KINDS

pytestmark = [pytest.mark.dist, pytest.mark.process]
# What other branches mend.
NOT_YET = ("a refused", "a disk")
SLOW = ("two ranks under torchrun",)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if not k.name.startswith(NOT_YET + SLOW)], ids=lambda kind: kind.name
)
def test_a_run_survives(bench, kind):
    faults = list(kind.faults(bench, random.Random(SEED)))
    fault = random.Random(SEED).choice(faults)
    row = happen(bench, 0, kind, fault)
    assert row["held"], f"{fault.name}: {row['failed']}"
