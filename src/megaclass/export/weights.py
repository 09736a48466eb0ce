"""Checkpoints for other programs, and those of arcface_torch.

Shapes: N = rows asked for, C = classes, D = embedding columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass.checkpoint import Checkpoint, arcface_torch, tensorfile
from megaclass.checkpoint.arcface_torch import BACKBONE, HEAD, RankFiles, ReadRows
from megaclass.checkpoint.reader import expecting
from megaclass.checkpoint.tensorfile import Blocks
from megaclass.checkpoint.torchfile import read_torch_file, write_torch_file
from megaclass.checkpoint.weights import located, stored_rows, sub_centres, weights_of
from megaclass.config import load_recipe
from megaclass.errors import UserError
from megaclass.results.rundir import RunDirectory

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

_BLOCK_BYTES = 64 << 20


# -- to safetensors, or the backbone alone --------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What trained: the weights of a backbone, and a head. A part that the source does not have is empty.

    centres: of a margin head (C, D), its momentum likewise where it was kept; sub-centres of a class are consecutive
    rows. linear: the state dict of another head.
    """

    backbone: Mapping[str, Tensor] = field(default_factory=dict)
    centres: dict[str, Blocks] = field(default_factory=dict)
    linear: Mapping[str, Tensor] = field(default_factory=dict)
    sub_centres: int = 1


def read_model(source: Path, which: str, classes: slice = slice(None)) -> Model:
    """The model of a run (``which`` of its checkpoints), of one checkpoint, or of files of arcface_torch.

    These are a backbone (``model.pt``, ``backbone.pth``) or the files of the ranks, whose directory is given. A
    backbone is the moving average of its weights, where a run kept it. Rows are fp32, and only of ``classes``.
    """
    found = located(source, which)
    if found is None:
        return _of_arcface_torch(source, classes)
    _, stored = found
    with expecting(f"{stored.path}: not a checkpoint that `megaclass train` wrote"):
        backbone = weights_of(stored, "backbone")
        if "head" in stored.state:
            return Model(backbone, linear=weights_of(stored, "head"))
        kept = [name for name in ("weight", "momentum") if f"head/{name}" in stored.sharded]
        rows, shape, of_class = _rows_of(stored), stored.sharded["head/weight"].shape, sub_centres(stored)
        centres = {name: _blocks(rows, name, shape, classes, of_class) for name in kept}
        return Model(backbone, centres, sub_centres=of_class)


def _of_arcface_torch(source: Path, classes: slice) -> Model:
    if source.is_file():
        loaded = read_torch_file(source)
        if isinstance(loaded, Mapping) and "weight" not in loaded and HEAD not in loaded:
            return Model(_state_dict(source, loaded))
    files = RankFiles(source)
    first = read_torch_file(files.paths[0])
    backbone = first.get(BACKBONE, {}) if isinstance(first, Mapping) else {}
    shape = (files.num_classes, files.embedding_dim)
    return Model(_state_dict(files.paths[0], backbone), {"weight": _blocks(files.rows, "weight", shape, classes)})


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.dtype in tensorfile.DTYPE_NAMES
        for name, value in loaded.items()
    ):
        raise UserError(f"{path}: holds no state dict, from parameter name to tensor; save that alone")
    return dict(loaded)


def _blocks(rows: ReadRows, name: str, shape: tuple[int, ...], classes: slice, of_class: int = 1) -> Blocks:
    total, columns = shape[0] // of_class, shape[1]
    start, stop = classes.start or 0, total if classes.stop is None else classes.stop
    if not 0 <= start < stop <= total:
        raise UserError(f"--classes: {start}:{stop} of {total:,} classes; name a range of these")
    start, stop, count = start * of_class, stop * of_class, max(1, _BLOCK_BYTES // (4 * columns))

    def read() -> Iterator[Tensor]:
        for first in range(start, stop, count):
            yield rows(name, first, min(first + count, stop))

    return Blocks(torch.float32, (stop - start, columns), read)


def write_model(path: Path, model: Model) -> None:
    """One safetensors file of ``backbone.*`` and ``head.*``. Raises OSError."""
    head: dict[str, Tensor | Blocks] = {**model.linear}
    head |= {name: blocks for name, blocks in model.centres.items() if name == "weight"}
    named = {f"backbone.{name}": tensor for name, tensor in model.backbone.items()}
    tensorfile.write_tensors(path, named | {f"head.{name}": tensor for name, tensor in head.items()})


def write_backbone(path: Path, model: Model, as_torch: bool) -> None:
    """The backbone's state dict: a safetensors file, or as arcface_torch's ``model.pt``. Raises OSError, and UserError
    where there is none."""
    if not model.backbone:
        raise UserError("SOURCE: there is no backbone in it; `megaclass export centres` writes what is")
    if as_torch:
        write_torch_file(path, dict(model.backbone))
    else:
        tensorfile.write_tensors(path, model.backbone)


# -- to arcface_torch, to train on ----------------------------------------------------------------------


def to_rank_files(source: Path | str, output: Path | str, *, ranks: int, layout: str, which: str) -> list[Path]:
    """Write the files that arcface_torch's script resumes from, at ``ranks`` processes; returns their paths.

    source: a run of megaclass (``which`` of its checkpoints), one checkpoint of it, or the directory of rank files, of
    either layout and any number of ranks. ranks: 0 takes as many as wrote the source.
    """
    source = Path(source)
    found = located(source, which)
    if found is not None:
        run_dir, stored = found
        with expecting(f"{stored.path}: not a checkpoint that `megaclass train` wrote"):
            shared, rows, num_classes, writers = _from_run(run_dir, stored)
    else:
        files = RankFiles(source)
        shared, rows, num_classes, writers = files.shared(), files.rows, files.num_classes, len(files.paths)
    return arcface_torch.write_rank_files(
        output, ranks=ranks or writers, num_classes=num_classes, shared=shared, rows=rows, layout=layout
    )


def _rows_of(stored: Checkpoint) -> ReadRows:
    def rows(name: str, start: int, stop: int) -> Tensor:
        if f"head/{name}" not in stored.sharded:  # row-wise storage keeps no momentum
            return torch.zeros(stop - start, stored.sharded["head/weight"].shape[1])
        return stored_rows(stored, f"head/{name}", start, stop).fp32()

    return rows


def _from_run(run_dir: Path, stored: Checkpoint) -> tuple[dict[str, Any], ReadRows, int, int]:
    """What a checkpoint of a run holds, its rows, the number of classes and of the ranks that wrote it."""
    config = load_recipe(str(RunDirectory(run_dir).config), stored=True)
    if "head/weight" not in stored.sharded:
        raise UserError(f"{stored.path}: the run has a linear head; only a margin head is converted")
    if sub_centres(stored) > 1:
        raise UserError(f"{stored.path}: head.sub_centres is above 1, and arcface_torch has one centre a class")
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
    count = sum(not name.endswith(BUFFERS) for name in backbone)
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
    return shared, _rows_of(stored), stored.sharded["head/weight"].shape[0], stored.world_size
