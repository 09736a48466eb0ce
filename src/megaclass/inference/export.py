"""Checkpoints for other programs.

Shapes: N = rows asked for, D = embedding columns.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass.checkpoint import Checkpoint, arcface_torch
from megaclass.checkpoint.arcface_torch import RankFiles, ReadRows
from megaclass.checkpoint.reader import expecting
from megaclass.config import load_recipe
from megaclass.errors import UserError
from megaclass.inference.load import find_checkpoint
from megaclass.results.rundir import RunDirectory
from megaclass.train.resume import stored_rows

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def to_rank_files(
    source: Path | str, output: Path | str, *, ranks: int, layout: str, which: str
) -> list[Path]:
    """Write the files that arcface_torch's script resumes from, at ``ranks`` processes; returns their paths.

    source: the directory of a run of megaclass (``which`` of its checkpoints), or of rank files, of either layout
    and any number of ranks. ranks: 0 takes as many as wrote the source.
    """
    source = Path(source)
    if RunDirectory(source).config.is_file():
        stored = find_checkpoint(source, which)
        with expecting(f"{stored.path}: not a checkpoint that `megaclass train` wrote"):
            shared, rows, num_classes, writers = _from_run(source, stored)
    else:
        files = RankFiles(source)
        shared, rows, num_classes, writers = files.shared(), files.rows, files.num_classes, len(files.paths)
    return arcface_torch.write_rank_files(
        output, ranks=ranks or writers, num_classes=num_classes, shared=shared, rows=rows, layout=layout
    )


def _from_run(run_dir: Path, stored: Checkpoint) -> tuple[dict[str, Any], ReadRows, int, int]:
    """What a checkpoint of a run holds, its rows, the number of classes and of the ranks that wrote it."""
    config = load_recipe(str(RunDirectory(run_dir).config), stored=True)
    if "head/weight" not in stored.sharded:
        raise UserError(f"{stored.path}: the run has a linear head; only a margin head is exported")
    num_classes, dim = stored.sharded["head/weight"].shape

    def rows(name: str, start: int, stop: int) -> Tensor:
        if f"head/{name}" not in stored.sharded:  # row-wise storage keeps no momentum
            return torch.zeros(stop - start, dim)
        return stored_rows(stored, f"head/{name}", start, stop).fp32()

    step, backbone = stored.step, stored.state["backbone"]
    # A fresh SGD at the learning rate that was reached: our groups of parameters are others than arcface_torch's one,
    # so the momentum of the backbone starts at 0 there.
    parameter = torch.nn.Parameter(torch.zeros(()))
    sgd = torch.optim.SGD(
        [parameter],
        lr=float(stored.state["optimizer"]["param_groups"][0]["lr"]),
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
    )
    group = sgd.state_dict()["param_groups"][0]
    of_head = {key: group[key] for key in ("lr", "momentum", "weight_decay")}
    of_head["lr"] *= config.optim.head_lr_factor
    count = sum(not name.endswith(_BUFFERS) for name in backbone)
    shared = {
        "epoch": step * config.data.global_batch_size // int(stored.identity["training_samples"]),
        "global_step": step,
        arcface_torch.BACKBONE: backbone,
        arcface_torch.OPTIMIZER: {"state": {}, "param_groups": [{**group, "params": list(range(count))}]},
        arcface_torch.SCHEDULER: {"last_epoch": step, "_step_count": step + 1},
        arcface_torch.HEAD_OPTIMIZER: {
            "state": {0: {"step": stored.state["head_steps"]}},
            "param_groups": [{**of_head, "params": [0]}],
        },
    }
    return shared, rows, num_classes, stored.world_size
