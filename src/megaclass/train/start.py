"""The head that a run starts from, where that is not drawn anew: of a run, of arcface_torch, torchvision or timm.

Shapes: C = classes that are trained, K = new ones among them, N = images, D = columns.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaclass.checkpoint.arcface_torch import RankFiles
from megaclass.checkpoint.weights import located, read_weights, stored_rows, sub_centres
from megaclass.data.dataset import Dataset, places_among
from megaclass.data.views import Subset
from megaclass.errors import UserError
from megaclass.evaluation.evaluators import ImageReader
from megaclass.heads.linear import LinearHead
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.storage import Rows
from megaclass.models.registry import last_layer, load_backbone_weights
from megaclass.results.rundir import RunDirectory


def linear_head(backbone: nn.Module, source: str) -> LinearHead | None:
    """The last layer of a classifier whose backbone this is: of a run or a checkpoint, or from a file of weights.

    None where there is none; UserError for one that does not go with the backbone.
    """
    state, head = read_weights(Path(source))
    head = head or last_layer(backbone, state, source)
    if not head:
        return None
    made = LinearHead(len(head.get("weight", ())), int(backbone.embedding_dim))  # type: ignore[arg-type]
    load_backbone_weights(made, head, source)
    return made


def load_head(
    head: PartialFC | LinearHead, classes: int, names: list[str] | None, backbone: nn.Module, source: str
) -> tuple[np.ndarray, int, bool]:
    """Put the linear layer, or this rank's part of the centres, from ``source`` into the head; a run may have had any
    number of ranks. Classes are matched by name where both sides have ``names``; new ones stay as drawn.

    Returns each class's number in the source (-1: new), how many there are, and whether names were matched. UserError
    where another number of ``classes`` has no names, or the columns are others.
    """
    found, columns = located(Path(source), "best"), head.weight.shape[1]
    linear, shape, of_class = None, None, sub_centres(found[1]) if found else 1
    if isinstance(head, LinearHead):
        if linear := linear_head(backbone, source):
            shape = tuple(linear.weight.shape)
    elif found is None:
        files = RankFiles(source, classes)
        shape = files.num_classes, files.embedding_dim
    elif entry := found[1].sharded.get("head/weight"):
        shape = entry.shape[0] // of_class, entry.shape[1]
    if shape is None:
        kind = "linear layer" if isinstance(head, LinearHead) else "class centres"
        raise UserError(f"head.weights: {source} has no {kind}; name a run with such a head, or leave it out")
    theirs = RunDirectory(found[0]).read_classes(shape[0]) if found else None
    numbers_C = np.arange(classes) if shape[0] == classes else None
    by_name = bool(names and theirs)
    if names and theirs:
        numbers_C = places_among(theirs, names, "head.weights")
        if numbers_C.max() < 0:
            raise UserError(
                f"head.weights: {source} knows no class of data.path (its first is {theirs[0]!r}, here {names[0]!r}): "
                "leave it out, and the head starts anew, while model.weights takes the backbone all the same; joined "
                "sets that have class names in common call all by set and name: pack these as one set"
            )
    if shape[1] != columns or numbers_C is None:
        raise UserError(
            f"head.weights: {source} holds {shape[0]:,} classes of {shape[1]} columns, and {classes:,} of {columns} "
            "are trained; leave it out (classes are matched where the data and the run have names for them)"
        )
    if isinstance(head, PartialFC) and of_class != head.options.sub_centres:
        raise UserError(
            f"head.weights: {source} has {of_class} centres of each class, and {head.options.sub_centres} are trained; "
            f"set head.sub_centres to {of_class}, or leave it out"
        )
    if linear is not None:
        rows, layer = np.flatnonzero(numbers_C >= 0), linear.state_dict()
        for name, values in head.state_dict().items():
            values[rows] = layer[name][numbers_C[rows]].to(values.device)
    elif isinstance(head, PartialFC):
        read = (
            partial(stored_rows, found[1], "head/weight") if found else lambda *rows: Rows(files.rows("weight", *rows))
        )
        own_C1 = numbers_C[slice(*head.class_range), None]
        rows = np.where(own_C1 < 0, own_C1, own_C1 * of_class + np.arange(of_class))
        _take_centres(head, rows.ravel(), read)
    return numbers_C, shape[0], by_name


_BLOCK = 1 << 16  # rows of the source at a time


def _take_centres(head: PartialFC, numbers_R: np.ndarray, read: Callable[[int, int], Rows]) -> None:
    """Of this rank's R rows those that the source has, in the order that they have there: it may be of many files."""
    order_R = np.argsort(numbers_R, kind="stable")
    sorted_R = numbers_R[order_R]
    begin = int(np.searchsorted(sorted_R, 0))
    while begin < len(sorted_R):
        first = int(sorted_R[begin])
        end = int(np.searchsorted(sorted_R, first + _BLOCK))
        part = read(first, int(sorted_R[end - 1]) + 1)
        rows, places = (torch.from_numpy(found[begin:end]) for found in (order_R, sorted_R - first))
        head.shard.centres.store(rows, part[places])
        begin = end


# -- classes that the source does not know ---------------------------------------------------------------

Means = Callable[[np.ndarray], Tensor]  # of the embeddings of sorted classes
_IMAGES = 16  # of a class that are looked at
_CLASSES = 4096  # at a time: the embeddings of their images are in memory


def start_new_classes(head: PartialFC, numbers_C: np.ndarray, means_of: Means | None) -> None:
    """Give the classes with a negative number the direction of their mean, or that drawn for them, where there is none
    or it is zero, and the mean length of the other centres: then steps turn all of them alike. Of several sub-centres
    the first gets the mean. All ranks call."""
    (start, stop), centres, of_class = head.class_range, head.shard.centres, head.options.sub_centres
    is_taken_C = torch.from_numpy(numbers_C[start:stop] >= 0).to(centres.data.device)
    lengths = centres.norms().view(-1, of_class)[is_taken_C].double()
    sums = torch.stack([lengths.sum(), lengths.new_tensor(lengths.numel())])
    total, count = head.grouping.within.all_reduce_(sums)
    new_K = np.flatnonzero(numbers_C < 0)
    for block_K in np.split(new_K, range(_CLASSES, len(new_K), _CLASSES)):
        own_K = (block_K >= start) & (block_K < stop)
        first_K = torch.from_numpy((block_K[own_K] - start) * of_class).to(sums.device)
        rows = (first_K[:, None] + torch.arange(of_class, device=sums.device)).flatten()
        directions = head.centres(rows)
        if means_of is not None:
            means_KD = means_of(block_K)[torch.from_numpy(own_K)].to(sums.device)
            firsts_KD = directions[::of_class]
            firsts_KD.copy_(torch.where(means_KD.any(1, keepdim=True), means_KD, firsts_KD))
        centres.put(rows, F.normalize(directions) * (total / count).float())


def mean_embeddings(backbone: nn.Module, images: ImageReader, dataset: Dataset, numbers_C: np.ndarray) -> Means:
    """What gives the mean of the normalised embeddings of the first 16 images of classes with a negative number, as an
    evaluation sees them: fp32 (K, D) on every rank, zeros without images. Each rank embeds its share. A centre without
    training: Qi et al., CVPR 2018, "Low-shot learning with imprinted weights", section 3.2."""
    labels_N = dataset.labels()
    places_N = np.flatnonzero(numbers_C[labels_N] < 0)
    places_N = places_N[np.argsort(labels_N[places_N], kind="stable")]
    labels_N = labels_N[places_N]
    is_early_N = np.arange(len(labels_N)) - np.searchsorted(labels_N, labels_N) < _IMAGES
    places_N, labels_N = places_N[is_early_N], labels_N[is_early_N]

    def means_of(classes_K: np.ndarray) -> Tensor:
        own = slice(*np.searchsorted(labels_N, [classes_K[0], classes_K[-1] + 1]))
        subset = Subset(dataset, places_N[own])
        means_KD = torch.zeros(len(classes_K), int(backbone.embedding_dim))  # type: ignore[arg-type]
        if len(subset):
            rows_ND = images.embed(backbone, subset, flip=False)
            means_KD.index_add_(0, torch.from_numpy(np.searchsorted(classes_K, labels_N[own])), rows_ND)
        if not means_KD.isfinite().all():
            raise UserError("head.new_classes: embeddings are not finite; look at model.weights, or set random")
        return means_KD

    return means_of
