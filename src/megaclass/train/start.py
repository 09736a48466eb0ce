"""The head that a run starts from, where that is not drawn anew: of a run, of arcface_torch, torchvision or timm."""

from functools import partial
from pathlib import Path

from torch import nn

from megaclass.checkpoint.arcface_torch import RankFiles
from megaclass.checkpoint.weights import located, read_weights, stored_rows, sub_centres
from megaclass.errors import UserError
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
) -> None:
    """Put the linear layer, or this rank's part of the centres, from ``source`` into the head; a run may have had any
    number of ranks. UserError where its ``classes`` (how many, and their ``names``) or its columns are others."""
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
    if shape != (classes, columns):
        raise UserError(
            f"head.weights: {source} holds {shape[0]:,} classes of {shape[1]} columns, and {classes:,} of {columns} "
            "are trained; leave it out"
        )
    if isinstance(head, PartialFC) and of_class != head.options.sub_centres:
        raise UserError(
            f"head.weights: {source} has {of_class} centres of each class, and {head.options.sub_centres} are trained; "
            f"set head.sub_centres to {of_class}, or leave it out"
        )
    theirs = RunDirectory(found[0]).read_classes() if found else None
    if theirs and names and theirs != names:
        other = next(pair for pair in zip(theirs, names, strict=True) if pair[0] != pair[1])
        raise UserError(
            f"head.weights: {source} calls {other[0]!r} the class that is {other[1]!r} here; leave it out"
        )
    if linear is not None:
        head.load_state_dict(linear.state_dict())
    elif isinstance(head, PartialFC):
        read = (
            partial(stored_rows, found[1], "head/weight")
            if found
            else lambda *rows: Rows(files.centres(*rows))
        )
        head.shard.centres.fill(head.row_range[0], read)
