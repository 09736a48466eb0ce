"""Composition of data, model and metrics: what a run measures of its model, alone or during training.

Shapes: B = images of a batch, N = images of the set, D = embedding columns.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from megaclass.config import Config
from megaclass.data.augment import EvalTransform
from megaclass.data.dataset import Dataset, class_names, places_among
from megaclass.data.loader import eval_batches
from megaclass.data.open import open_dataset, set_titles, shared_sets, split_paths
from megaclass.data.verification_bin import VerificationBin
from megaclass.errors import UserError
from megaclass.evaluation.embed import embed, evaluating, features
from megaclass.evaluation.metrics import (
    all_pairs_tar,
    classification_metrics,
    insightface_accuracy,
    one_shot_accuracy,
    pair_scores,
    topk_counts,
    verification_metrics,
)
from megaclass.evaluation.pairlists import open_listed_pairs
from megaclass.evaluation.pairs import PairSet, generate_pairs
from megaclass.heads.linear import LinearHead
from megaclass.parallel import groups

logger = logging.getLogger(__name__)

# Pairs and episodes are part of the protocol: the same for every run, whatever its seed.
PROTOCOL_SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """Metrics (the fixed keys of result.json), and the ROC curve where there is one.

    Of several verification sets these are the first one's, whose name is then ``metrics["name"]``; those of
    the others are ``metrics["others"][name]`` and ``rocs[name]``.
    """

    kind: str
    metrics: dict[str, Any]
    roc: dict[str, list[float]] | None = None
    rocs: dict[str, dict[str, list[float]] | None] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The number by which the best checkpoint is chosen."""
        return self.metrics["pair_accuracy" if self.kind == "verification" else "top1"]

    def sets(self) -> "Iterator[tuple[str, dict[str, Any], dict[str, list[float]] | None]]":
        """Name, metrics and ROC curve of each set; the name of a single one is the kind."""
        yield self.metrics.get("name", self.kind), self.metrics, self.roc
        for name, metrics in self.metrics.get("others", {}).items():
            yield name, metrics, self.rocs[name]


Evaluator = Callable[[nn.Module, nn.Module | None], Evaluation]
"""What a backbone, with the linear head where the task has one, is worth."""


def _verifier(dataset: Dataset, pairs: PairSet, config: Config, images: "ImageReader", labelled: bool) -> Evaluator:
    """Scores a backbone on pairs of images of identities that it was not trained on."""
    settings = config.evaluate
    labels_N = dataset.labels() if labelled else None

    def verify(backbone: nn.Module, head: nn.Module | None) -> Evaluation:
        embeddings_ND = images.embed(backbone, dataset, settings.flip).numpy()
        scores = pair_scores(embeddings_ND, pairs)
        metrics = verification_metrics(scores, pairs.same, pairs.folds)
        if settings.thresholds == "insightface":
            metrics |= insightface_accuracy(scores, pairs.same, pairs.folds)
        if labels_N is not None:
            # A labelled set has far more impostor pairs than the drawn ones: enough for a low FAR.
            metrics |= all_pairs_tar(embeddings_ND, labels_N)
            if settings.episodes:
                ways, episodes = settings.ways, settings.episodes
                found = one_shot_accuracy(embeddings_ND, labels_N, ways, episodes, PROTOCOL_SEED)
                metrics[f"one_shot_{ways}way"], metrics["one_shot_standard_error"] = found
        return Evaluation("verification", metrics, metrics.pop("roc"))

    return verify


def _one_by_one(verifiers: Mapping[str, Evaluator]) -> Evaluator:
    """Scores a backbone on one verification set after the other, as arcface_torch does with its .bin files."""

    def verify(backbone: nn.Module, head: nn.Module | None) -> Evaluation:
        found = {name: verifier(backbone, head) for name, verifier in verifiers.items()}
        first, *others = found
        names = {"name": first, "others": {name: found[name].metrics for name in others}}
        rocs = {name: found[name].roc for name in others}
        return Evaluation("verification", found[first].metrics | names, found[first].roc, rocs)

    return verify


def build_classifier(
    path: str | Path,
    num_classes: int,
    names: Sequence[str] | None,
    images: "ImageReader",
    flip: bool = False,
) -> Evaluator:
    """Top-1 and top-5 accuracy of backbone and linear head on the labelled set under ``path``. ``num_classes``: of the
    head; 0: as many as ``names``, or as the set has. ``flip``: see :func:`~megaclass.evaluation.embed.features`."""
    dataset = open_dataset(path)
    num_classes = num_classes or len(names or ()) or dataset.num_classes
    labels = torch.from_numpy(trained_labels(dataset, num_classes, names))
    start, stop = groups.shard_range(len(dataset), groups.rank(), groups.world_size())

    @torch.inference_mode()
    def count(backbone: nn.Module, head: LinearHead) -> Tensor:
        """Hits among this rank's share of the images."""
        counts = torch.zeros(3, dtype=torch.int64, device=images.device)
        done = start
        with evaluating(backbone):
            for images_BCHW in images.batches(dataset, start, stop):
                features_BD = features(partial(images.features, backbone), images_BCHW, flip)
                logits_BC = head.logits(features_BD)  # in fp32, as in training
                if logits_BC.shape[1:] != (num_classes,):
                    raise UserError(
                        f"the model gives {tuple(logits_BC.shape[1:])} numbers an image, not one for each of "
                        f"{num_classes} classes"
                    )
                labels_B = labels[done : done + len(images_BCHW)].to(logits_BC.device)
                counts += topk_counts(logits_BC, labels_B)
                done += len(images_BCHW)
        return counts

    def classify(backbone: nn.Module, head: nn.Module | None) -> Evaluation:
        counts = groups.together(lambda: count(backbone, cast(LinearHead, head)))
        return Evaluation("classification", dict(classification_metrics(counts)))

    return classify


def trained_labels(
    dataset: Dataset, num_classes: int, names: Sequence[str] | None, where: str = "evaluate.path"
) -> np.ndarray:
    """The data set's labels as the model numbers its classes: matched by name where both sides have names.

    A validation set that lacks a class would shift all later numbers, so without names the counts must agree.
    """
    labels_N, theirs = dataset.labels(), class_names(dataset)
    if names and theirs:
        number_C = places_among(names, theirs, where)
        if number_C.min() < 0:
            unknown = theirs[int(number_C.argmin())]
            raise UserError(f"{where}: the model knows no class {unknown!r}; name a set of classes it knows")
        return number_C[labels_N]
    if dataset.num_classes != num_classes:
        raise UserError(
            f"{where}: has {dataset.num_classes} classes, the model {num_classes}, and without class names "
            "they cannot be matched; give a set with all classes"
        )
    return np.array(labels_N)


@dataclass(frozen=True)
class ImageReader:
    """From an index range of a data set to normalised batches, and to what the model makes of them."""

    transform: EvalTransform
    batch_size: int
    workers: int
    device: torch.device
    to_input: Callable[[Tensor], Tensor]
    precision: Callable[[], AbstractContextManager]

    def batches(self, dataset: Dataset, start: int, stop: int) -> Iterator[Tensor]:
        size, pin = self.batch_size, self.device.type == "cuda"
        for batch in eval_batches(dataset, self.transform, size, start, stop, workers=self.workers, pin_memory=pin):
            yield self.to_input(batch.images)

    def features(self, backbone: nn.Module, images_BCHW: Tensor) -> Tensor:
        """What the backbone gives, fp32 (B, D), computed as in training. UserError where it is anything else."""
        with self.precision():
            found = backbone(images_BCHW)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images_BCHW):
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"the model gives {given} for {len(images_BCHW)} images, not a row of numbers for each")
        return found.float()

    def embed(self, backbone: nn.Module, dataset: Dataset, flip: bool, *, normalised: bool = True) -> Tensor:
        """Of every image, as :func:`megaclass.evaluation.embed.embed`, in evaluation mode."""
        network, batches = partial(self.features, backbone), partial(self.batches, dataset)
        with evaluating(backbone):
            return embed(network, batches, len(dataset), flip, normalised=normalised)


def tell_of_overlap(config: Config, path: Path, names: Iterable[str] | None, trained: Sequence[str] | None) -> None:
    """Warn, once, where the set under ``path`` is trained on, or identities (``names``) of it: it is to show how the
    model does on new ones. ``trained``: names of the classes that were trained on."""
    known = set(trained or ()) & set(names or ())
    if groups.rank():
        return
    if known:
        logger.warning(
            "%s: %d of its identities, %r among them, have the names of classes that are trained on: if they are the "
            "same, what is measured is no recognition of new ones",
            path, len(known), min(known),
        )  # fmt: skip
    elif config.data.path and (shared := shared_sets(config.data.path, str(path))):
        logger.warning("%s is evaluated, and trained on too: what is measured is not what new images give", shared[0])


def build_verifier(config: Config, path: Path, images: ImageReader, trained: Sequence[str] | None = None) -> Evaluator:
    """Pairs of a ``.bin`` file, of ``evaluate.pairs_file``, or drawn from the labels of the set under ``path``.

    Where ``path`` names several, with ``:`` between them, and a ``.bin`` is among these, each is a set of its own,
    called by what tells its path from the others'; otherwise they are one labelled set. Raises UserError for what
    cannot be opened. ``trained``: see :func:`tell_of_overlap`.
    """
    if config.evaluate.pairs_file:
        if path.suffix == ".bin":
            raise UserError(f"{path} has pairs of its own; leave out the list {config.evaluate.pairs_file}")
        dataset, pairs = open_listed_pairs(config.evaluate.pairs_file, path)
        tell_of_overlap(config, path, (name.rpartition("/")[0] for name in dataset.names), trained)
        return _verifier(dataset, pairs, config, images, labelled=False)
    paths = split_paths(path)
    if len(paths) == 1 or not any(part.suffix == ".bin" for part in paths):
        return _of_one_set(config, paths[0] if len(paths) == 1 else path, images, trained)
    if len({part.resolve() for part in paths}) < len(paths):
        raise UserError(f"evaluate.path: {path} names a set twice; name each once")
    titles = [title.removesuffix(".bin") for title in set_titles(paths)]
    if len(set(titles)) < len(titles):  # a .bin beside a directory of its name
        titles = [str(part) for part in paths]
    named = zip(titles, paths, strict=True)
    return _one_by_one({title: _of_one_set(config, part, images, trained) for title, part in named})


def _of_one_set(config: Config, path: Path, images: ImageReader, trained: Sequence[str] | None) -> Evaluator:
    settings = config.evaluate
    dataset = VerificationBin(path) if path.suffix == ".bin" else open_dataset(path)
    tell_of_overlap(config, path, class_names(dataset), trained)
    if isinstance(dataset, VerificationBin):
        if len(dataset.same) < settings.folds:
            raise UserError(
                f"{path}: {len(dataset.same)} pairs cannot be cut into evaluate.folds {settings.folds}; set fewer"
            )
        pairs = PairSet(dataset.first, dataset.second, dataset.same, settings.folds)
        return _verifier(dataset, pairs, config, images, labelled=False)
    pairs = generate_pairs(dataset.labels(), settings.pairs, PROTOCOL_SEED, settings.folds)
    return _verifier(dataset, pairs, config, images, labelled=True)
