"""arcface_torch's own training script with our head in it, changed as docs/tutorials/arcface_torch.md says.

Needs a copy of arcface_torch: the directory that holds train_v2.py, in MEGACLASS_ARCFACE_TORCH. Nothing of it is part
of this project. Its script runs on the CPU in a process of its own, see arcface_torch_loop.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import arcface_torch_loop
from megaclass.checkpoint.arcface_torch import HEAD_OPTIMIZER, RankFiles, to_arcface_torch, to_dropin

pytestmark = pytest.mark.dist

PEER = os.environ.get("MEGACLASS_ARCFACE_TORCH", "")
needs_peer = pytest.mark.skipif(not PEER, reason="MEGACLASS_ARCFACE_TORCH names no copy of arcface_torch")

STEPS = 30
SETTINGS = {
    "network": "smooth",  # the stand-in backbone of arcface_torch_loop.py
    "rec": "synthetic",
    "num_classes": 1000,
    "embedding_size": 512,
    "margin_list": (1.0, 0.5, 0.0),
    "sample_rate": 1.0,
    "fp16": False,
    "batch_size": 32,
    "num_image": 32 * STEPS // 2,
    "num_epoch": 2,
    "warmup_epoch": 0.2,
    "lr": 0.02,
    "val_targets": [],
    "save_all_states": False,
}


def run(folder: Path, head: str, first_epoch: int = 0, ranks: int = 1, **changes: Any) -> dict[str, Any]:
    """Train by the peer's script; returns the losses and how often each block of the document was placed."""
    folder.mkdir(exist_ok=True)
    request = {
        "peer": PEER,
        "head": head,
        "first_epoch": first_epoch,
        "settings": {**SETTINGS, "output": str(folder / "output"), **changes},
        "output": str(folder / "losses.json"),
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        environment |= {"WORLD_SIZE": str(ranks), "LOCAL_RANK": "0"}
    command = [sys.executable, arcface_torch_loop.__file__, str(folder / "request.json")]
    processes = []
    for rank in range(ranks):
        with (folder / f"log-{rank}.txt").open("w") as log:
            mine = environment | ({"RANK": str(rank)} if ranks > 1 else {})
            processes.append(subprocess.Popen(command, env=mine, stdout=log, stderr=log))
    for rank, process in enumerate(processes):
        assert process.wait() == 0, (folder / f"log-{rank}.txt").read_text(encoding="utf-8")[-4000:]
    return json.loads((folder / "losses.json").read_text(encoding="utf-8"))


def difference(theirs: list[float], ours: list[float]) -> float:
    """The largest difference of two losses, which is printed (pytest -s)."""
    a, b = torch.tensor(theirs, dtype=torch.float64), torch.tensor(ours, dtype=torch.float64)
    assert len(a) == len(b)
    # Its display clamps probabilities at 1e-30: a loss beyond -log of that would not be a loss.
    assert a.max() < 60
    largest = float((a - b).abs().max())
    print(f"\n{len(a)} losses from {a[0]:.3f} to {a[-1]:.3f}: largest difference {largest:.1e}")
    return largest


@needs_peer
@pytest.mark.parametrize("scaled", [False, True])
def test_the_same_losses_with_our_head(tmp_path: Path, scaled: bool) -> None:
    """30 steps of ArcFace, straight-through, full rate, fp32, warm-up and decay: within 1e-4, absolute.

    ``scaled`` takes the script's branch for fp16, whose loss scale makes both optimizers skip the first steps.
    """
    theirs, ours = (run(tmp_path / head, head, fp16=scaled) for head in ("theirs", "ours"))
    if scaled:
        assert theirs["loss_scale"] == ours["loss_scale"] < arcface_torch_loop.FIRST_SCALE / 2
    # The script offers two optimizers and two branches of the step.
    expected = dict.fromkeys(arcface_torch_loop.BLOCKS, 1) | {"head": 2, "clip": 2}
    assert ours["placed"] == expected and len(ours["losses"]) == STEPS
    assert difference(theirs["losses"], ours["losses"]) < 1e-4
    assert theirs["losses"][-1] < 0.5 * theirs["losses"][0]  # there was something to agree on


@needs_peer
def test_the_same_losses_on_two_ranks(tmp_path: Path) -> None:
    theirs, ours = (run(tmp_path / head, head, ranks=2, batch_size=16, num_image=480) for head in ("theirs", "ours"))
    assert difference(theirs["losses"], ours["losses"]) < 1e-4


@needs_peer
def test_a_run_of_theirs_goes_on_with_our_head_and_the_other_way_round(tmp_path: Path) -> None:
    """Fifteen steps with one head, the checkpoint converted, fifteen with the other: the same thirty losses."""
    whole = {head: run(tmp_path / head, head, save_all_states=True) for head in ("theirs", "ours")}
    for before, after, convert in (("theirs", "ours", to_dropin), ("ours", "theirs", to_arcface_torch)):
        folder = tmp_path / f"{before}-{after}"
        (folder / "output").mkdir(parents=True)
        stored = torch.load(tmp_path / before / "output" / "after-epoch-1.pt", weights_only=True)
        assert (HEAD_OPTIMIZER in stored) == (before == "ours")
        torch.save(convert(stored), folder / "output" / "checkpoint_gpu_0.pt")
        rest = run(folder, after, first_epoch=1, resume=True)
        assert difference(whole["theirs"]["losses"][STEPS // 2 :], rest["losses"]) < 1e-4
    files = RankFiles(tmp_path / "theirs" / "output", SETTINGS["num_classes"])
    assert files.rows("weight").isfinite().all() and files.rows("momentum").abs().sum() > 0


def test_the_document_has_every_block() -> None:
    blocks = arcface_torch_loop.documented_blocks(arcface_torch_loop.DOC.read_text(encoding="utf-8"))
    assert blocks.keys() == set(arcface_torch_loop.BLOCKS) and all(blocks.values())
