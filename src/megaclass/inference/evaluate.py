"""Score a model once, outside training: a run, anybody's network, or embeddings that it has made, by one protocol.

Shapes: B = images of a batch, N = images of a set, D = embedding columns, C = classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megaclass.config import Config, from_mapping
from megaclass.data.dataset import Dataset, image_names
from megaclass.data.loader import SYMMETRIC
from megaclass.data.preprocessing import Channels, Preprocessing
from megaclass.data.verification_bin import VerificationBin
from megaclass.errors import UserError, lookup
from megaclass.evaluation import PROTOCOLS, protocol_of
from megaclass.evaluation.evaluators import (
    Evaluation,
    ImageReader,
    build_classifier,
    build_verifier,
    tell_of_overlap,
)
from megaclass.inference.about import About
from megaclass.inference.model import GivenLogits, Model
from megaclass.inference.vectors import Embeddings, read_embeddings
from megaclass.parallel.groups import together
from megaclass.train.arithmetic import pick_arithmetic
from megaclass.train.job import image_reader

KINDS = ("verification", "classification")


def evaluate(
    model: Model | nn.Module | Callable[[Tensor], Tensor],
    path: str | Path,
    kind: str = "verification",
    *,
    size: int | tuple[int, int] = 112,
    resize: int = 0,
    mean: Channels = SYMMETRIC,
    std: Channels = SYMMETRIC,
    classes: Sequence[str] | None = None,
    device: torch.device | str = "",
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Evaluation:
    """What a model is worth on the set under ``path``, by the protocol of ``megaclass evaluate``.

    model: what :func:`megaclass.load` gives; or a module, or any function, from normalised images, fp32 (B, 3, height,
    width), RGB, to embeddings (B, D), or with ``kind="classification"`` to logits (B, C).

    path: ``verification`` takes a ``.bin`` file (several with ``:`` between), images that ``pairs_file`` names, or a
    labelled set, from which pairs are drawn; ``classification`` a labelled set; ``ijb``, ``retrieval``,
    ``identification`` and ``all-pairs`` what ``megaclass evaluate`` takes, with its ``options``, as ``{"nmi": True}``.

    The next are of a module or function; a loaded model has its own. size: a square's side, or (height, width). resize:
    the shorter side is scaled to it and the middle cut out; 0: images are stretched. mean, std: a channel, of
    ``(pixel / 255 - mean) / std``. classes: their names in the order of the logits, by which the set's are matched.
    device: of the images; without it that of the module's parameters, or the CPU.

    settings: of the section ``[evaluate]``, such as ``flip=True``, ``batch_size=64``, ``thresholds="insightface"``.

    Returns an Evaluation: ``metrics`` holds what result.json does, ``roc`` the curve. Raises UserError for bad input.
    """
    flip = {"flip": model.about.flip} if isinstance(model, Model) else {}
    config = from_mapping({"evaluate": {"task": "none"} | flip | settings})
    if not isinstance(model, Model):
        height, width = (size, size) if isinstance(size, int) else size
        prepared = Preprocessing(height, width, resize, mean, std)
        network = model if isinstance(model, nn.Module) else _Function(model)
        device = torch.device(device or next((p.device for p in network.parameters()), "cpu"))
        names = list(classes) if classes else None
        about = About(kind="identity", preprocessing=prepared, embedding_dim=0, classes=names)
        head = GivenLogits() if kind == "classification" else None
        reader = image_reader(config, pick_arithmetic("fp32", False, device), prepared)
        model = Model("the model", about, network, reader, head)
    elif "batch_size" in settings:
        model = replace(model, reader=replace(model.reader, batch_size=settings["batch_size"]))
    known = protocol_of(kind).OPTIONS if kind in PROTOCOLS else {}
    for name in options or {}:
        lookup({one.replace("-", "_"): one for one in known}, name, f"option of {kind}")
    return measured(config, model, kind, str(path), options or {})


def measured(config: Config, model: Model, kind: str, path: str, options: Mapping[str, Any]) -> Evaluation:
    """The same, as ``[evaluate]`` of the configuration says; every rank calls. ``config.data.path``: what the model was
    trained on, if known."""
    lookup(dict.fromkeys((*KINDS, *PROTOCOLS)), kind, "evaluation")
    if kind in PROTOCOLS:
        return Evaluation(kind, _by_protocol(config, model, kind, path, options))
    if kind == "verification":
        return build_verifier(config, Path(path), model.reader, model.classes)(model.backbone, None)
    if model.head is None:
        raise UserError(
            f"{model.source} has no linear head, and classification needs one: a run that has it (--run-dir), or "
            "--model.weights with a last layer fc.weight"
        )
    tell_of_overlap(config, Path(path), None, None)
    classifier = build_classifier(path, model.num_classes, model.classes, model.reader, config.evaluate.flip)
    return classifier(model.backbone, model.head)


def _by_protocol(config: Config, model: Model, kind: str, path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    protocol = protocol_of(kind)
    known = {name.replace("-", "_"): default for name, (default, _) in protocol.OPTIONS.items()}
    prepared = together(lambda: protocol.prepare(path, known | dict(options)))
    dataset = together(lambda: prepared.images(model.reader.transform.shape))
    flip, normalised = config.evaluate.flip, not prepared.norms
    rows_ND = model.reader.embed(model.backbone, dataset, flip, normalised=normalised)
    return prepared.measure(rows_ND.numpy())


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self._function(images_BCHW)


# -- from embeddings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StoredRows(ImageReader):
    """Rows of a file in the place of images."""

    path: str
    stored: Embeddings

    def batches(self, dataset: Dataset, start: int, stop: int) -> Iterator[Tensor]:
        rows_N = self._rows(dataset)[start:stop]
        for first in range(0, len(rows_N), self.batch_size):
            rows_BD = self.stored.embeddings[rows_N[first : first + self.batch_size]]
            yield torch.from_numpy(rows_BD.astype(np.float32))

    def _rows(self, dataset: Dataset) -> np.ndarray:
        """The row of each image: by its name where both sides have names, else by its number. int64 (N,)."""
        count, names = len(self.stored.names), image_names(dataset)
        if isinstance(dataset, VerificationBin) and count == 2 * len(dataset.same):
            return dataset.positions
        if names is None or self.stored.names == [str(number) for number in range(count)]:
            if count != len(dataset):
                raise UserError(
                    f"--embeddings: {self.path} holds {count:,} embeddings, and there are {len(dataset):,} images; "
                    "embed this very set, all of it"
                )
            return np.arange(count)
        row_of: dict[str, int] = {}
        depths = {name.count("/") + 1 for name in names}
        for row, name in enumerate(self.stored.names):
            parts = name.split("/")
            for key in {"/".join(parts[-depth:]) for depth in depths}:
                row_of[key] = -1 if key in row_of else row
        rows_N = np.array([row_of.get(name, -1) for name in names], np.int64)
        if (rows_N < 0).any():
            lost = names[int(rows_N.argmin())]
            what = "more than one embedding" if lost in row_of else "no embedding"
            raise UserError(
                f"--embeddings: {self.path} holds {what} of {lost}, the first of {(rows_N < 0).sum():,} such images; "
                "embed the directory that is evaluated"
            )
        return rows_N


def of_embeddings(path: str) -> Model:
    """The embeddings of a file (see :mod:`megaclass.inference.vectors`) in the place of a network. Images are found by
    their names; a ``.npy``, or a set without names, goes by its order, a ``.bin`` by that of its images."""
    found = read_embeddings(path)
    if path.endswith(".npy"):  # of which a protocol may ask the norms
        found = replace(found, embeddings=np.load(path, mmap_mode="r"))
    prepared = Preprocessing(1, 1)  # nobody asks how they were made
    about = About(kind="identity", preprocessing=prepared, embedding_dim=found.embeddings.shape[1])
    reader = image_reader(Config(), pick_arithmetic("fp32", False, torch.device("cpu")), prepared)
    reader = _StoredRows(**vars(reader), path=path, stored=found)
    return Model(path, about, nn.Identity(), reader)
