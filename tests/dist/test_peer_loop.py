"""The peer's loop as `bench train --peer arcface_torch` runs it, against the peer's own script: the same losses.

Needs a copy of arcface_torch: the directory that holds train_v2.py, in MEGACLASS_ARCFACE_TORCH.
"""

import json
import os
import subprocess
import sys

import pytest

from dist.test_arcface_torch_loop import PEER, needs_peer, run

pytestmark = pytest.mark.dist

STEPS, PARTS, BATCH, SEED = 6, 2, 16, 2048

OURS = """
import json, sys, torch
import arcface_torch_loop
from megaclass.bench.peers.arcface_torch import Loop
from megaclass.bench.recipes import config_of
from megaclass.bench.sweep import resolved
from megaclass.bench.train import TrainCase
from megaclass.parallel.groups import World

job = json.loads(sys.argv[1])
torch.set_num_threads(1)
case, alone = resolved(TrainCase(**job["case"]), "cpu"), World(0, 1, torch.device("cpu"))
training = Loop(case, config_of(case), alone, Loop.options(job["peer"]))
batches = arcface_torch_loop.patterns(job["case"]["num_classes"], job["part"], job["steps"] * job["parts"], 0)
losses = []
for first in range(0, len(batches), job["parts"]):
    images, labels = map(torch.cat, zip(*batches[first : first + job["parts"]]))
    losses.append(training.step(images, labels))
print(json.dumps(losses))
"""


@needs_peer
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_a_peer_in_the_benchmark_trains_as_its_script_does(tmp_path, rate):
    part, classes, lr = BATCH // PARTS, 100, 1e-4
    theirs = run(
        tmp_path / "script", "theirs", network="mbf", num_classes=classes, batch_size=part, gradient_acc=PARTS,
        num_image=STEPS * BATCH, num_epoch=1, warmup_epoch=0.5, lr=lr, sample_rate=rate, seed=SEED,
    )["losses"]  # fmt: skip
    settings = {"data.accumulation": PARTS, "optim.lr": lr, "optim.lr_batch_size": 0, "schedule.steps": STEPS,
                "schedule.warmup": 0.5, "schedule.warmup_epochs": 0.0}  # fmt: skip
    case = {"recipe": "faces_r50", "backbone": "mbf", "num_classes": classes, "global_batch_size": BATCH,
            "sample_rate": rate, "seed": SEED, "settings": settings}  # fmt: skip
    job = {"case": case, "peer": PEER, "part": part, "parts": PARTS, "steps": STEPS}
    done = subprocess.run([sys.executable, "-c", OURS, json.dumps(job)], env=os.environ
                          | {"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    ours = json.loads(done.stdout.splitlines()[-1])
    assert ours == pytest.approx(theirs[PARTS - 1 :: PARTS], rel=1e-5) and len(ours) == STEPS
    assert len(set(ours)) == STEPS
