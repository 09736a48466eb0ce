"""Score one model once, outside training; and the model that a checkpoint holds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megaclass import checkpoint
from megaclass.checkpoint import Checkpoint
from megaclass.config import Config, check
from megaclass.data.open import open_dataset
from megaclass.errors import UserError, near_match
from megaclass.evaluate.evaluators import Classifier, Evaluation, build_verifier
from megaclass.heads.linear import LinearHead
from megaclass.parallel.groups import World
from megaclass.results.rundir import RunDirectory
from megaclass.train.arithmetic import Arithmetic, use_threads
from megaclass.train.job import image_reader
from megaclass.train.model import build_model, input_function


def score(
    config: Config,
    world: World,
    kind: str,
    images: str,
    pairs: str = "",
    run_dir: str = "",
    which: str = "best",
) -> Evaluation:
    """Evaluate the model of a run's checkpoint, or a fresh one (random, or with ``model.weights``).

    kind: ``verification`` (of ``.bin`` files, of ``pairs``, a pairs.txt, or of pairs drawn from the labels) or
    ``classification``. which: ``best``, ``latest`` or the name of a checkpoint of ``run_dir``.
    """
    use_threads(config.run.threads)
    if pairs:
        config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, pairs_file=pairs))
    check(config)
    stored = find_checkpoint(Path(run_dir), which) if run_dir else None
    if stored:
        backbone, arithmetic = trained_backbone(config, stored, world.device)
    else:
        backbone, arithmetic = build_model(config, world.device)
    reader = image_reader(config, arithmetic, input_function(config, arithmetic))
    if kind == "verification":
        return build_verifier(config, Path(images), reader)(backbone)
    if stored is None or not has_linear_head(stored):
        raise UserError("classification needs --run-dir with a run of a linear head")
    head = trained_head(stored, backbone, world.device)
    names = RunDirectory(Path(run_dir)).read_classes()
    return Classifier(open_dataset(images), head.out_features, names, reader)(backbone, head)


def find_checkpoint(run_dir: Path, which: str) -> Checkpoint:
    root = run_dir / "checkpoints"
    known = [path.name for path in checkpoint.list_checkpoints(root)] if root.is_dir() else []
    if not known:
        raise UserError(f"{run_dir}: no checkpoint there; give the directory of a run")
    if which == "best":
        path = checkpoint.best(root) or checkpoint.latest(root)
    elif which == "latest":
        path = checkpoint.latest(root)
    elif which in known:
        path = root / which
    else:
        near = near_match(which, ["best", "latest", *known])
        raise UserError(f"no checkpoint {which!r}{near} in {root}; there are {', '.join(known)}")
    assert path is not None
    return checkpoint.load(path)


def averaged_or_last(stored: Checkpoint) -> dict[str, Any]:
    """The state dicts of a checkpoint's ``backbone`` and, of a linear head, ``head``: the moving averages of their
    weights where the run kept them (``ema``), else the weights of the last step."""
    last = {part: stored.state[part] for part in ("backbone", "head") if part in stored.state}
    averages = stored.state.get("ema") or {}
    if not isinstance(averages, Mapping):
        raise UserError(
            f"{stored.path}: checkpoint of another model (its averages are {type(averages).__name__})"
        )
    return last | {part: averages[part] for part in last if averages.get(part)}


def trained_backbone(
    config: Config, stored: Checkpoint, device: torch.device
) -> tuple[nn.Module, Arithmetic]:
    """The backbone with the weights of a checkpoint, on its device, and how it computes."""
    # What a run started from need not lie here any more, and would be overwritten.
    bare = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=""))
    backbone, arithmetic = build_model(bare, device)
    _load(backbone, stored, "backbone")
    return backbone, arithmetic


def has_linear_head(stored: Checkpoint) -> bool:
    return "head" in stored.state


def trained_head(stored: Checkpoint, backbone: nn.Module, device: torch.device) -> LinearHead:
    """The linear head of a checkpoint."""
    weight = stored.state["head"].get("weight") if isinstance(stored.state["head"], Mapping) else None
    width = backbone.embedding_dim
    if not isinstance(weight, torch.Tensor) or weight.shape[1:] != (width,):
        shape = tuple(weight.shape) if isinstance(weight, torch.Tensor) else "missing"
        raise UserError(
            f"{stored.path}: checkpoint of another model (head: weight is {shape}, features {width})"
        )
    head = LinearHead(*weight.shape).to(device)
    _load(head, stored, "head")
    return head


def _load(module: nn.Module, stored: Checkpoint, part: str) -> None:
    try:
        module.load_state_dict(averaged_or_last(stored)[part])
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{stored.path}: checkpoint of another model ({part}: {reason})") from None
