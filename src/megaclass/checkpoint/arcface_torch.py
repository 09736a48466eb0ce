"""The checkpoints of InsightFace's arcface_torch: read at any number of ranks, written for any.

Its training script writes ``checkpoint_gpu_{rank}.pt`` on every rank: the backbone, this rank's class centres
(``state_dict_softmax_fc``), the state of one SGD over the backbone's parameters and, last of all, the centres
(``state_optimizer``), the scheduler, epoch and step. A script with our head in it (docs/tutorials/arcface_torch.md)
writes the same, with the head's optimizer under a key of its own. These two are the *layouts* ``arcface_torch`` and
``dropin``.

Files are opened without running anything in them, and mapped rather than read: only rows asked for are touched.

Shapes: C = classes of all ranks, N = rows asked for, D = embedding columns.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass.checkpoint.torchfile import read_torch_file
from megaclass.errors import UserError
from megaclass.parallel.groups import shard_range

LAYOUTS = ("arcface_torch", "dropin")

HEAD, OPTIMIZER, HEAD_OPTIMIZER = "state_dict_softmax_fc", "state_optimizer", "state_head_optimizer"
BACKBONE, SCHEDULER = "state_dict_backbone", "state_lr_scheduler"

_NAME = re.compile(r"checkpoint_gpu_(\d{1,6})\.pt")
_BLOCK_BYTES = 64 << 20  # rows are copied and looked through in blocks of this size

Rows = Callable[[str, int, int], Tensor]
"""("weight" or "momentum", start, stop) -> rows [start, stop) of all classes, fp32 (N, D)."""


# -- one rank's checkpoint, as a dict ---------------------------------------------------------------------


def to_dropin(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint of one rank of their script, for the same script with our head in it, at the same ranks.

    The last parameter of the optimizer's state becomes that of HeadSGD; one already converted comes back as it
    is. No tensor is copied. UserError where the optimizer was not SGD over backbone and centres.
    """
    if HEAD_OPTIMIZER in checkpoint:
        return dict(checkpoint)
    if OPTIMIZER not in checkpoint:
        raise UserError(f"no {OPTIMIZER} in it; the head alone has centres, but no momentum")
    try:
        groups = [dict(group) for group in checkpoint[OPTIMIZER]["param_groups"]]
        state = dict(checkpoint[OPTIMIZER]["state"])
        last = max(index for group in groups for index in group["params"])
        if len(groups) < 2 or groups[-1]["params"] != [last]:
            raise UserError("the centres are not the last parameter group of state_optimizer")
        if "betas" in groups[-1]:
            raise UserError(
                "was trained with AdamW; HeadSGD can take its centres over, but not its optimizer state"
            )
        own = state.pop(last, {})
        head_state: dict[str, Any] = {"step": int(checkpoint["global_step"])}
        if isinstance(own.get("momentum_buffer"), Tensor):
            head_state["momentum_buffer"] = own["momentum_buffer"]
        else:  # saved before the first step, or trained without momentum
            head_state["momentum_buffer"] = torch.zeros_like(checkpoint[HEAD]["weight"])
        kept = ("lr", "momentum", "weight_decay", "initial_lr")
        group = {key: float(groups[-1][key]) for key in kept if key in groups[-1]}
        return {
            **checkpoint,
            OPTIMIZER: {"state": state, "param_groups": groups[:-1]},
            SCHEDULER: _cut_schedule(checkpoint[SCHEDULER], len(groups) - 1),
            HEAD_OPTIMIZER: {"state": {0: head_state}, "param_groups": [{**group, "params": [0]}]},
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{OPTIMIZER} is not what arcface_torch writes ({type(error).__name__}: {error})"
        ) from None


def to_arcface_torch(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The way back: one state of SGD again, the centres last, fp32. What is in their layout comes back as it is."""
    if HEAD_OPTIMIZER not in checkpoint:
        return dict(checkpoint)
    try:
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
        schedule = dict(checkpoint[SCHEDULER])
        for key in ("base_lrs", "_last_lr"):
            if key in schedule:
                schedule[key] = [*schedule[key], schedule[key][-1]]
        head = checkpoint[HEAD]
        converted = {
            **checkpoint,
            HEAD: {"weight": _fp32(head["weight"], head.get("weight_scale"))},
            OPTIMIZER: {"state": state, "param_groups": [*groups, group]},
            SCHEDULER: schedule,
        }
        del converted[HEAD_OPTIMIZER]
        return converted
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"not the checkpoint of a script with our head ({type(error).__name__}: {error})"
        ) from None


def _fp32(data: Tensor, scale: Tensor | None) -> Tensor:
    """Rows of any of our storages; a copy only where they are not fp32 already."""
    return data.float() if scale is None else data.float() * scale.float()[:, None]


def _cut_schedule(schedule: Mapping[str, Any], groups: int) -> dict[str, Any]:
    """A scheduler's state for the first parameter groups: it holds a list entry for each."""
    return {
        key: value[:groups] if key in ("base_lrs", "_last_lr") else value for key, value in schedule.items()
    }


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
        sizes, steps = [], set()
        for rank, path in enumerate(self.paths):
            checkpoint = self._checkpoint(rank)
            rows, columns = checkpoint[HEAD]["weight"].shape
            if rank == 0:
                self.embedding_dim: int = columns
            elif columns != self.embedding_dim:
                raise UserError(
                    f"{path}: centres of {columns} columns, those of rank 0 have {self.embedding_dim}"
                )
            sizes.append(rows)
            steps.add(str(checkpoint.get("global_step")))
        self.num_classes = sum(sizes)
        if len(steps) > 1:
            raise UserError(
                f"{self.source}: files of different saves, at the global steps {', '.join(sorted(steps))}"
            )
        self._ranges = [shard_range(self.num_classes, rank, len(sizes)) for rank in range(len(sizes))]
        for path, rows, (start, stop) in zip(self.paths, sizes, self._ranges, strict=True):
            if rows != stop - start:
                raise UserError(
                    f"{path}: {rows} centres, where rank {len(sizes)} files with {self.num_classes} have "
                    f"{stop - start} here; a file is missing, or of another run"
                )
        if num_classes is not None and num_classes != self.num_classes:
            raise UserError(
                f"{self.source}: {self.num_classes} centres in {len(sizes)} files, but {num_classes} classes; "
                "a file is missing, or they are of another data set"
            )

    def centres(self, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Rows ``[start, stop)`` of the centres of all ranks, fp32 (N, D) on the CPU, or ``out`` filled."""
        return self._rows("weight", start, stop, out)

    def momentum(self, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Their momentum, likewise, 0 where none was kept. UserError where there is AdamW's state or no state."""
        return self._rows("momentum", start, stop, out)

    def shared(self) -> dict[str, Any]:
        """What is not the head's, from rank 0's file, in the layout ``dropin``; norm statistics are that rank's."""
        with _blaming(self.paths[0]):
            checkpoint = to_dropin(self._checkpoint(0))
            if not isinstance(checkpoint.get(BACKBONE), Mapping):
                raise UserError("holds the head alone; a whole checkpoint is needed here")
        group = checkpoint[HEAD_OPTIMIZER]["param_groups"]
        step = checkpoint[HEAD_OPTIMIZER]["state"].get(0, {}).get("step", 0)
        return {**checkpoint, HEAD: {}, HEAD_OPTIMIZER: {"state": {0: {"step": step}}, "param_groups": group}}

    def _checkpoint(self, rank: int) -> dict[str, Any]:
        # One file stays open: neighbouring ranges are asked for in turn.
        if self._open is None or self._open[0] != rank:
            self._open = rank, _read(self.paths[rank])
        return self._open[1]

    def _rows(self, name: str, start: int, stop: int | None, out: Tensor | None) -> Tensor:
        stop = self.num_classes if stop is None else stop
        if not 0 <= start <= stop <= self.num_classes:
            raise ValueError(f"rows [{start}, {stop}) of {self.num_classes}")
        result = torch.empty(stop - start, self.embedding_dim) if out is None else out
        if result.shape != (stop - start, self.embedding_dim):
            raise ValueError(
                f"out is {tuple(result.shape)}, the rows are {(stop - start, self.embedding_dim)}"
            )
        for rank, (low, high) in enumerate(self._ranges):
            first, last = max(start, low), min(stop, high)
            if first >= last:
                continue
            target = result[first - start : last - start]
            with _blaming(self.paths[rank]):
                data, scale = _table(self._checkpoint(rank), name)
                if data is None:
                    target.zero_()
                else:
                    rows = slice(first - low, last - low)
                    _copy_finite(data[rows], None if scale is None else scale[rows], target, name)
        return result


def write_rank_files(
    output: Path | str, *, ranks: int, num_classes: int, shared: Mapping[str, Any], rows: Rows, layout: str
) -> list[Path]:
    """Write ``checkpoint_gpu_{rank}.pt`` for each of ``ranks`` processes into ``output``; returns the paths.

    shared: everything but the head's rows, in the layout ``dropin``. rows: see :data:`Rows`; one rank's rows are
    in memory at a time. layout: ``arcface_torch`` or ``dropin``.
    """
    output = Path(output)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    if not 1 <= ranks <= num_classes:
        raise UserError(f"--ranks: {ranks} for {num_classes} classes; every rank needs one")
    paths = [output / f"checkpoint_gpu_{rank}.pt" for rank in range(ranks)]
    taken = sorted(output.glob("checkpoint_gpu_*.pt"))
    if taken:
        raise UserError(f"{taken[0]} exists; name another directory")
    head_optimizer = shared[HEAD_OPTIMIZER]
    try:
        output.mkdir(parents=True, exist_ok=True)
        for rank, path in enumerate(paths):
            start, stop = shard_range(num_classes, rank, ranks)
            state = {**head_optimizer["state"].get(0, {}), "momentum_buffer": rows("momentum", start, stop)}
            checkpoint = {
                **shared,
                HEAD: {"weight": rows("weight", start, stop)},
                HEAD_OPTIMIZER: {**head_optimizer, "state": {0: state}},
            }
            part = path.with_suffix(".part")  # a file that is there is whole
            torch.save(to_arcface_torch(checkpoint) if layout == "arcface_torch" else checkpoint, part)
            part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}; name another directory") from None
    return paths


# -- reading without trust --------------------------------------------------------------------------------


class _blaming:  # noqa: N801 - used as a function
    """Puts the file in front of a UserError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UserError) and not str(error).startswith(str(self.path)):
            raise UserError(f"{self.path}: {error}") from None


def _rank_paths(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such file or directory")
    found = {int(match[1]): path for path in source.iterdir() if (match := _NAME.fullmatch(path.name))}
    if not found:
        raise UserError(
            f"{source}: no checkpoint_gpu_0.pt there; arcface_torch writes it with save_all_states"
        )
    missing = [rank for rank in range(max(found) + 1) if rank not in found]
    if missing:
        raise UserError(
            f"{source}: checkpoint_gpu_{missing[0]}.pt is missing, {len(found)} others are there; "
            "copy the files of all ranks"
        )
    return [found[rank] for rank in range(len(found))]


def _read(path: Path) -> dict[str, Any]:
    """One file, its tensors mapped, with a head in it that can be used."""
    loaded = read_torch_file(path)
    with _blaming(path):
        if isinstance(loaded, Mapping) and isinstance(loaded.get("weight"), Tensor):
            loaded = {HEAD: loaded}
        head = loaded.get(HEAD) if isinstance(loaded, Mapping) else None
        weight = head.get("weight") if isinstance(head, Mapping) else None
        if not isinstance(weight, Tensor):
            raise UserError(
                f"no head in it ({HEAD}.weight); model.pt and backbone.pth hold the backbone alone"
            )
        if weight.ndim != 2 or 0 in weight.shape:
            raise UserError(f"centres of shape {tuple(weight.shape)}; a head has (classes, columns)")
        _table(loaded, "weight")
    return dict(loaded)


def _table(checkpoint: Mapping[str, Any], name: str) -> tuple[Tensor | None, Tensor | None]:
    """The rows of one file and, where they have 8 bits, their scales. (None, None) for momentum not kept."""
    if name == "weight":
        holder, key = checkpoint[HEAD], "weight"
    else:
        holder, key = to_dropin(checkpoint)[HEAD_OPTIMIZER]["state"].get(0, {}), "momentum_buffer"
        if key not in holder:
            return None, None
    data, scale, shape = holder[key], holder.get(f"{name}_scale"), checkpoint[HEAD]["weight"].shape
    for tensor, wanted, integer_too in ((data, shape, scale is not None), (scale, shape[:1], False)):
        if tensor is None and tensor is scale:
            continue
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.shape != wanted:
            raise UserError(f"{name} is not a dense tensor of shape {tuple(wanted)}, one row a centre")
        if not tensor.dtype.is_floating_point and not (integer_too and tensor.dtype == torch.int8):
            raise UserError(f"{name} is {tensor.dtype}, not floating point")
        # A tensor of strides 0 claims rows that the file does not hold: nothing is allocated for these.
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise UserError(f"{name} claims {tuple(tensor.shape)} numbers, more than the file holds")
    return data, scale


@torch.no_grad()
def _copy_finite(rows_ND: Tensor, scale_N: Tensor | None, out_ND: Tensor, name: str) -> None:
    block = max(1, _BLOCK_BYTES // (4 * rows_ND.shape[1]))
    for first in range(0, len(rows_ND), block):
        rows = slice(first, first + block)
        # In fp32, in which a large fp64 number is infinite.
        part_ND = _fp32(rows_ND[rows], None if scale_N is None else scale_N[rows])
        if not part_ND.isfinite().all():
            raise UserError(f"{name} is not finite; the run had diverged, or the file is damaged")
        out_ND[rows].copy_(part_ND)
