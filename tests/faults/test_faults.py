"""A fault of each kind of the campaign, which `make faults` runs whole, and whether its rules see what is wrong."""

import random
import re
import shutil

import pytest

from faults import page, rules
from faults.bench import STEPS, Bench
from faults.campaign import SEED, happen
from faults.kinds import KINDS
from faults.one_rank import flip

pytestmark = [pytest.mark.dist, pytest.mark.process]
LEFT_OUT = ("two ranks under torchrun",)  # slow, and tests/dist has as much


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("kind", [k for k in KINDS if k.name not in LEFT_OUT], ids=lambda kind: kind.name)
def test_a_run_survives(bench, kind):
    fault = random.Random(SEED).choice(list(kind.faults(bench, random.Random(SEED))))
    row = happen(bench, 0, kind, fault)
    assert row["held"], f"{fault.name}: {row['failed']}"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_rules_see_what_is_wrong(bench, tmp_path, share):
    folder = shutil.copytree(bench.plain, tmp_path / "copy")
    run, whole, last = folder / "run", bench.plain / "run", f"checkpoints/step-{STEPS:08d}"
    rules_that_look = {
        rules.intact: (run, STEPS),
        rules.same_bits: (run, whole),
        rules.same_samples: (folder, bench.plain),
        rules.nothing_left: (run, whole),
        rules.same_losses: (run, whole, 0.0),
    }
    assert not [reason for rule, given in rules_that_look.items() for reason in rule(*given)]
    flip(run, f"{last}/replicated.safetensors", share)
    (run / "checkpoints" / ".tmp-step-00000003").mkdir()
    log, steps = run / "events.jsonl", folder / "1-0.steps"
    log.write_text(re.sub(r'"loss": (?=\d)', '"loss": 1', log.read_text()))
    steps.write_text("".join(steps.read_text().splitlines(keepends=True)[1:]))
    assert not [rule.__name__ for rule, given in rules_that_look.items() if not list(rule(*given))]


def test_the_page_is_made_of_the_rows():
    lines = page.ROWS.read_text(encoding="utf-8").splitlines()
    assert page.render(lines) == page.PAGE.read_text(encoding="utf-8")
