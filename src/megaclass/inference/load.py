"""Score one model once, outside training; and the model that a checkpoint holds."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from megaclass import checkpoint
from megaclass.checkpoint import Checkpoint
from megaclass.checkpoint.reader import expecting
from megaclass.config import Config
from megaclass.errors import UserError, lookup
from megaclass.evaluate.evaluators import Evaluation, ImageReader, build_classifier, build_verifier
from megaclass.heads.linear import LinearHead
from megaclass.parallel.groups import World
from megaclass.results.rundir import RunDirectory
from megaclass.train.arithmetic import use_threads
from megaclass.train.job import image_reader
from megaclass.train.model import build_model


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
    stored = find_checkpoint(Path(run_dir), which) if run_dir else None
    if stored:
        backbone, reader = trained_backbone(config, stored, world.device)
    else:
        backbone, arithmetic = build_model(config, world.device)
        reader = image_reader(config, arithmetic)
    if kind == "verification":
        return build_verifier(config, Path(images), reader)(backbone, None)
    if stored is None or "head" not in stored.state:
        raise UserError("classification needs --run-dir with a run of a linear head")
    head = trained_head(stored, backbone, world.device)
    names = RunDirectory(Path(run_dir)).read_classes()
    return build_classifier(images, head.out_features, names, reader)(backbone, head)


def find_checkpoint(run_dir: Path, which: str) -> Checkpoint:
    root = run_dir / "checkpoints"
    complete = checkpoint.list_checkpoints(root)
    if not complete:
        raise UserError(
            f"{run_dir}: no checkpoint there: it is no run, or has saved none yet (run.checkpoint_every)"
        )
    known = {path.name: path for path in complete}
    known |= {"latest": complete[-1], "best": checkpoint.best(root) or complete[-1]}
    return checkpoint.load(lookup(known, which, "checkpoint"))


def trained_backbone(
    config: Config, stored: Checkpoint, device: torch.device
) -> tuple[nn.Module, ImageReader]:
    """The backbone with the weights of a checkpoint, on its device, and what reads images for it."""
    # What a run started from need not lie here any more, and would be overwritten.
    bare = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=""))
    backbone, arithmetic = build_model(bare, device)
    with expecting(f"{stored.path}: checkpoint of another model"):
        backbone.load_state_dict(weights_of(stored, "backbone"))
    return backbone, image_reader(config, arithmetic)


def trained_head(stored: Checkpoint, backbone: nn.Module, device: torch.device) -> LinearHead:
    """The linear head of a checkpoint."""
    with expecting(f"{stored.path}: checkpoint of another model"):
        weights = weights_of(stored, "head")
        head = LinearHead(len(weights["weight"]), int(backbone.embedding_dim)).to(device)  # type: ignore[arg-type]
        head.load_state_dict(weights)
        return head


def weights_of(stored: Checkpoint, part: str) -> dict[str, Tensor]:
    """A part's weights of the last step, or the moving average of them where the run kept it (``ema``)."""
    return (stored.state.get("ema") or {}).get(part) or stored.state[part]
