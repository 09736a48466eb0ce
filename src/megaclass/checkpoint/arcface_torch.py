"""The checkpoints of InsightFace's arcface_torch: read at any number of ranks, written for any.

Its training script writes ``checkpoint_gpu_{rank}.pt`` on every rank: the backbone, this rank's class centres
(``state_dict_softmax_fc``), the state of one SGD over the backbone's parameters and, last of all, the centres
(``state_optimizer``), the scheduler, epoch and step. A script with our head in it (docs/tutorials/arcface_torch.md)
writes the same, with the head's optimizer under a key of its own. These two are the *layouts* ``arcface_torch`` and
``dropin``.

Files are opened without running anything in them, and mapped rather than read: only rows asked for are touched.

Shapes: C = classes of all ranks, N = rows asked for, D = embedding columns.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass.checkpoint.reader import expecting
from megaclass.checkpoint.torchfile import read_torch_file, write_torch_file
from megaclass.errors import UserError
from megaclass.heads.storage import Rows
from megaclass.parallel.groups import shard_range

HEAD, OPTIMIZER, HEAD_OPTIMIZER = "state_dict_softmax_fc", "state_optimizer", "state_head_optimizer"
BACKBONE, SCHEDULER = "state_dict_backbone", "state_lr_scheduler"

_RANK_FILE = re.compile(r"checkpoint_gpu_(\d{1,6})\.pt")

ReadRows = Callable[[str, int, int], Tensor]
"""("weight" or "momentum", start, stop) -> rows [start, stop) of all classes, fp32 (N, D)."""


# -- one rank's checkpoint, as a dict ---------------------------------------------------------------------


def to_dropin(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint of one rank of their script, for the same script with our head in it, at the same ranks.

    The last parameter of the optimizer's state becomes that of HeadSGD; one already converted comes back as it
    is. UserError where the optimizer was not SGD over backbone and centres.
    """
    if HEAD_OPTIMIZER in checkpoint:
        return dict(checkpoint)
    with expecting(f"{OPTIMIZER} is not what arcface_torch writes"):
        *groups, of_centres = (dict(group) for group in checkpoint[OPTIMIZER]["param_groups"])
        (last,) = of_centres["params"]
        if "betas" in of_centres:
            raise UserError("was trained with AdamW; HeadSGD can take its centres over, but not its optimizer state")
        state = dict(checkpoint[OPTIMIZER]["state"])
        own = state.pop(last, {})
        momentum = own.get("momentum_buffer")
        if momentum is None:  # saved before the first step, or trained without momentum
            momentum = torch.zeros_like(checkpoint[HEAD]["weight"])
        head_state = {"step": int(checkpoint["global_step"]), "momentum_buffer": momentum}
        kept = ("lr", "momentum", "weight_decay", "initial_lr")
        group = {key: float(of_centres[key]) for key in kept if key in of_centres}
        return {
            **checkpoint,
            OPTIMIZER: {"state": state, "param_groups": groups},
            SCHEDULER: _schedule_of(checkpoint[SCHEDULER], lambda rates: rates[: len(groups)]),
            HEAD_OPTIMIZER: {"state": {0: head_state}, "param_groups": [{**group, "params": [0]}]},
        }


def to_arcface_torch(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The way back: one state of SGD again, the centres last, fp32. What is in their layout comes back as it is."""
    if HEAD_OPTIMIZER not in checkpoint:
        return dict(checkpoint)
    with expecting("not the checkpoint of a script with our head"):
        groups = [dict(group) for group in checkpoint[OPTIMIZER]["param_groups"]]
        own = dict(checkpoint[HEAD_OPTIMIZER]["state"].get(0, {}))
        last = 1 + max((index for group in groups for index in group["params"]), default=-1)
        if "betas" in groups[-1]:
            raise UserError("AdamW for the backbone and SGD for the centres do not fit one optimizer")
        # What SGD does besides is as it was for the backbone; the numbers are the head's own.
        group = {**groups[-1], **checkpoint[HEAD_OPTIMIZER]["param_groups"][0], "params": [last]}
        group = {key: value for key, value in group.items() if key in groups[-1]}
        state = dict(checkpoint[OPTIMIZER]["state"])
        if "momentum_buffer" in own:  # row-wise storage has none: every gradient has had its whole effect
            state[last] = {"momentum_buffer": _fp32(own["momentum_buffer"], own.get("momentum_scale"))}
        head = checkpoint[HEAD]
        converted = {
            **checkpoint,
            HEAD: {"weight": _fp32(head["weight"], head.get("weight_scale"))},
            OPTIMIZER: {"state": state, "param_groups": [*groups, group]},
            SCHEDULER: _schedule_of(checkpoint[SCHEDULER], lambda rates: [*rates, rates[-1]]),
        }
        del converted[HEAD_OPTIMIZER]
        return converted


def _fp32(data: Tensor, scale: Tensor | None) -> Tensor:
    """Rows of any of our storages; a copy only where they are not fp32 already."""
    return data.float() if scale is None else Rows(data, scale).fp32()


def _schedule_of(schedule: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A scheduler's state for other parameter groups: it holds a list with an entry for each."""
    rates = ("base_lrs", "_last_lr")
    return {key: change(value) if key in rates else value for key, value in schedule.items()}


# -- the files of all ranks -------------------------------------------------------------------------------


class RankFiles:
    """The files of one save, as one head of C classes.

    source: the directory of ``checkpoint_gpu_{rank}.pt``, or one file where one rank wrote them all. A file may
    also hold the head's state dict alone.
    num_classes: how many there must be; None takes what is there, and cannot notice that the last file is missing.

    UserError, in one line, for what is missing, damaged, or does not fit together.
    """

    def __init__(self, source: Path | str, num_classes: int | None = None) -> None:
        self.source = Path(source)
        self.paths = _rank_paths(self.source)
        self._open: tuple[int, dict[str, Any]] | None = None
        shapes, steps = [], set()
        for rank in range(len(self.paths)):
            checkpoint = self._checkpoint(rank)
            shapes.append(tuple(checkpoint[HEAD]["weight"].shape))
            steps.add(str(checkpoint.get("global_step")))
        self.embedding_dim: int = shapes[0][1]
        self.num_classes = sum(rows for rows, _ in shapes)
        self._ranges = [shard_range(self.num_classes, rank, len(shapes)) for rank in range(len(shapes))]
        if len(steps) > 1:
            raise UserError(f"{self.source}: files of different saves, at the global steps {', '.join(sorted(steps))}")
        for path, shape, (start, stop) in zip(self.paths, shapes, self._ranges, strict=True):
            if shape != (stop - start, self.embedding_dim):
                raise UserError(
                    f"{path}: centres of shape {shape}, where {(stop - start, self.embedding_dim)} would go with the "
                    f"{len(shapes)} files here; a file is missing, or of another run"
                )
        if num_classes not in (None, self.num_classes):
            raise UserError(
                f"{self.source}: {self.num_classes} centres in {len(shapes)} files, but {num_classes} classes; "
                "a file is missing, or they are of another data set"
            )

    @torch.no_grad()
    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``[start, stop)`` of the ``weight`` (centres) or ``momentum`` of all ranks, fp32 (N, D) on the CPU;
        without a range all. Momentum is 0 where none was kept. UserError where there is AdamW's state or no state.
        """
        stop = self.num_classes if stop is None else stop
        if not 0 <= start <= stop <= self.num_classes:
            raise ValueError(f"rows [{start}, {stop}) of {self.num_classes}")
        result = torch.zeros(stop - start, self.embedding_dim)
        for rank, (low, high) in enumerate(self._ranges):
            first, last = max(start, low), min(stop, high)
            if first >= last:
                continue
            with _blaming(self.paths[rank]), expecting(f"{name} cannot be used"):
                table = _table(self._checkpoint(rank), name)
                if table is None:
                    continue
                part = table[first - low : last - low]
                found = result[first - start : last - start].copy_(part.data)
                if part.scale is not None:
                    found.mul_(part.scale[:, None])
                # In fp32, in which a large fp64 number is infinite; a NaN is the smallest and the largest.
                if not torch.stack(found.aminmax()).isfinite().all():
                    raise UserError(f"{name} is not finite; the run had diverged, or the file is damaged")
        return result

    def shared(self) -> dict[str, Any]:
        """What is not the head's, from rank 0's file, in the layout ``dropin``; norm statistics are that rank's."""
        with _blaming(self.paths[0]), expecting("not a whole checkpoint, of backbone and head"):
            checkpoint = to_dropin(self._checkpoint(0))
            optimizer, _ = checkpoint[HEAD_OPTIMIZER], checkpoint[BACKBONE]
            step = optimizer["state"].get(0, {}).get("step", 0)
            return {**checkpoint, HEAD: {}, HEAD_OPTIMIZER: {**optimizer, "state": {0: {"step": step}}}}

    def _checkpoint(self, rank: int) -> dict[str, Any]:
        # One file stays open: neighbouring ranges are asked for in turn.
        if self._open is None or self._open[0] != rank:
            self._open = rank, _read(self.paths[rank])
        return self._open[1]


def write_rank_files(
    output: Path | str,
    *,
    ranks: int,
    num_classes: int,
    shared: Mapping[str, Any],
    rows: ReadRows,
    layout: str,
) -> list[Path]:
    """Write ``checkpoint_gpu_{rank}.pt`` for each of ``ranks`` processes into the new directory ``output``; returns
    the paths. Raises OSError.

    shared: everything but the head's rows, in the layout ``dropin``. rows: see :data:`ReadRows`; one rank's rows are
    in memory at a time. layout: ``arcface_torch`` or ``dropin``.
    """
    output = Path(output)
    if not 1 <= ranks <= num_classes:
        raise UserError(f"--ranks: {ranks} for {num_classes} classes; every rank needs one")
    head_optimizer, paths = shared[HEAD_OPTIMIZER], []
    output.mkdir()
    for rank in range(ranks):
        start, stop = shard_range(num_classes, rank, ranks)
        state = {**head_optimizer["state"][0], "momentum_buffer": rows("momentum", start, stop)}
        checkpoint = {
            **shared,
            HEAD: {"weight": rows("weight", start, stop)},
            HEAD_OPTIMIZER: {**head_optimizer, "state": {0: state}},
        }
        paths.append(output / f"checkpoint_gpu_{rank}.pt")
        write_torch_file(paths[-1], to_arcface_torch(checkpoint) if layout == "arcface_torch" else checkpoint)
    return paths


# -- reading without trust --------------------------------------------------------------------------------


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Puts the file in front of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _rank_paths(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such file or directory")
    matches = ((_RANK_FILE.fullmatch(path.name), path) for path in source.iterdir())
    found = {int(match[1]): path for match, path in matches if match}
    for rank in range(max(found, default=0) + 1):
        if rank not in found:
            raise UserError(
                f"{source}: checkpoint_gpu_{rank}.pt is missing; arcface_torch writes one on each rank, with "
                "save_all_states; copy them all"
            )
    return [found[rank] for rank in sorted(found)]


def _read(path: Path) -> dict[str, Any]:
    """One file, its tensors mapped, with a head in it that can be used."""
    loaded = read_torch_file(path)
    with _blaming(path), expecting(f"no {HEAD}.weight in it that can be used"):
        checkpoint = {HEAD: loaded} if "weight" in loaded else dict(loaded)
        shape = tuple(checkpoint[HEAD]["weight"].shape)
        if len(shape) != 2 or 0 in shape:
            raise UserError(f"centres of shape {shape}; a head has (classes, columns)")
        _table(checkpoint, "weight")
    return checkpoint


def _table(checkpoint: Mapping[str, Any], name: str) -> Rows | None:
    """The rows of one file; None for momentum that was not kept."""
    holder, key, shape = checkpoint[HEAD], "weight", checkpoint[HEAD]["weight"].shape
    if name == "momentum":
        holder, key = to_dropin(checkpoint)[HEAD_OPTIMIZER]["state"].get(0, {}), "momentum_buffer"
        if key not in holder:
            return None
    rows = Rows(holder[key], holder.get(f"{name}_scale"))
    if rows.data.layout != torch.strided or rows.data.shape != shape:
        raise UserError(f"{name} is not a dense tensor of shape {tuple(shape)}, one row a centre")
    return rows
