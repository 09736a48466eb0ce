"""Score one model once, outside training."""

import dataclasses
from pathlib import Path

from torch import nn

from megaclass import checkpoint
from megaclass.build import build_model, image_reader, input_function
from megaclass.checkpoint import Checkpoint
from megaclass.config import Config, check
from megaclass.data.open import open_dataset
from megaclass.distributed import World
from megaclass.errors import UserError, near_match
from megaclass.evaluation import Classifier, Evaluation, build_verifier
from megaclass.heads.linear import LinearHead
from megaclass.rundir import RunDirectory
from megaclass.runtime import use_threads


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
    backbone, arithmetic = build_model(config, world.device)
    stored = find_checkpoint(Path(run_dir), which) if run_dir else None
    if stored:
        _load(backbone, stored, "backbone")
    reader = image_reader(config, arithmetic, input_function(config, arithmetic))
    if kind == "verification":
        return build_verifier(config, Path(images), reader)(backbone)
    if stored is None or "head" not in stored.state:
        raise UserError("classification needs --run-dir with a run of a linear head")
    weight = stored.state["head"]["weight"]
    head = LinearHead(*weight.shape).to(world.device)
    _load(head, stored, "head")
    return Classifier(open_dataset(images), len(weight), RunDirectory(Path(run_dir)).read_classes(), reader)(
        backbone, head
    )


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
        raise UserError(
            f"no checkpoint {which!r}{near_match(which, known)} in {root}; there are {', '.join(known)}"
        )
    assert path is not None
    return checkpoint.load(path)


def _load(module: nn.Module, stored: Checkpoint, part: str) -> None:
    try:
        module.load_state_dict(stored.state[part])
    except (KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{stored.path}: checkpoint of another model ({part}: {reason})") from None
