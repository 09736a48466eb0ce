"""The weights that a run starts from, or that are used: of a run, of one checkpoint, or of a file of any program."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass.checkpoint import directory, manifest, tensorfile
from megaclass.checkpoint.manifest import DAMAGE
from megaclass.checkpoint.reader import Checkpoint, expecting, load
from megaclass.checkpoint.torchfile import read_torch_file
from megaclass.errors import UserError, first_line, lookup
from megaclass.files import regular_size
from megaclass.heads.storage import Rows
from megaclass.results.rundir import RunDirectory

# -- of a run --------------------------------------------------------------------------------------------


def located(source: Path, which: str) -> tuple[Path, Checkpoint] | None:
    """The run directory and the checkpoint that are meant; None where the source is none of ours."""
    if (source / manifest.NAME).exists():
        return source.resolve().parent.parent, load(source)
    if RunDirectory(source).checkpoints.is_dir() or RunDirectory(source).config.is_file():
        return source, find_checkpoint(source, which)
    return None


def find_checkpoint(run_dir: Path, which: str) -> Checkpoint:
    root = run_dir / "checkpoints"
    complete = directory.list_checkpoints(root)
    if not complete:
        raise UserError(f"{run_dir}: no checkpoint there: it is no run, or has saved none yet (run.checkpoint_every)")
    known = {path.name: path for path in complete}
    known |= {"latest": complete[-1], "best": directory.best(root) or complete[-1]}
    return load(lookup(known, which, "checkpoint"))


def weights_of(stored: Checkpoint, part: str) -> dict[str, Tensor]:
    """A part's weights of the last step, or the moving average of them where the run kept it (``ema``)."""
    return (stored.state.get("ema") or {}).get(part) or stored.state[part]


def sub_centres(stored: Checkpoint) -> int:
    """How many rows of a margin head are the centres of one class."""
    return int(stored.identity.get("sub_centres", 1))


def stored_rows(stored: Checkpoint, name: str, start: int, stop: int) -> Rows:
    """Rows ``[start, stop)`` of a head's table (``head/weight``) in a checkpoint, as dense SGD would have made them."""
    table_K4 = stored.state.get("head_owed")
    if table_K4 is None:
        return rows_as_stored(stored, name, start, stop)
    age_N = stored.state["head_steps"] - stored.rows("head/touched", start, stop).long()
    if not (age_N.amin() >= 0 and age_N.amax() < len(table_K4)):
        raise UserError(f"{stored.path}: head/touched is of other steps")
    vv_N1, vw_N1, wv_N1, ww_N1 = table_K4[age_N].float().split(1, dim=1)
    of_w_N1, of_v_N1 = (ww_N1, wv_N1) if name == "head/weight" else (vw_N1, vv_N1)
    paid_ND = rows_as_stored(stored, "head/weight", start, stop).fp32().mul_(of_w_N1)
    if "head/momentum" in stored.sharded:
        paid_ND.addcmul_(rows_as_stored(stored, "head/momentum", start, stop).fp32(), of_v_N1)
    return Rows(paid_ND)


def rows_as_stored(stored: Checkpoint, name: str, start: int, stop: int) -> Rows:
    """In any storage; sampled steps may have left them behind."""
    scaled = stored.sharded[name].dtype == torch.int8
    scale_N = stored.rows(f"{name}_scale", start, stop) if scaled else None
    return Rows(stored.rows(name, start, stop), scale_N)


# -- of a run, or of a file ------------------------------------------------------------------------------


def read_weights(source: Path) -> tuple[Any, dict[str, Tensor]]:
    """What to load into a backbone, and the linear head that goes with it, empty where there is none.

    source: a run, of which it is the best checkpoint, one checkpoint, a ``.safetensors`` file (with ``backbone.*`` and
    ``head.*``, or a backbone alone), or what ``torch.save`` wrote. UserError for what cannot be opened.
    """
    if found := located(source, "best"):
        with expecting(f"{found[1].path}: not a checkpoint that `megaclass train` wrote"):
            head = weights_of(found[1], "head") if "head" in found[1].state else {}
            return weights_of(found[1], "backbone"), head
    if not source.exists():
        raise UserError(f"{source}: no such file or directory; name a run, a checkpoint or a file of weights")
    if source.suffix != ".safetensors":
        return read_torch_file(source), {}
    try:
        regular_size(source)
        backbone, head = (tensorfile.read_tensors(source, part) for part in ("backbone.", "head."))
        if not backbone:
            return tensorfile.read_tensors(source), {}
    except DAMAGE as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{source}: not a safetensors file that can be read: {why}; name another") from None
    return backbone, head if "bias" in head else {}
