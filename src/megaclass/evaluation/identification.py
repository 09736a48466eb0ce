"""1:N identification: whose image is it, among those of a gallery or among many distractors.

Shapes: P = probes, N = distractors, B = probes of a block, S = numbers of distractors, D = embedding columns.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from megaclass.data.dataset import Dataset
from megaclass.data.open import open_dataset
from megaclass.data.views import ConcatDataset
from megaclass.errors import UserError
from megaclass.evaluation.blocks import my_blocks
from megaclass.evaluation.metrics import BINS, LOW_FAR_TARGETS, binned, of_counts
from megaclass.evaluation.protocol import Prepared, open_labelled
from megaclass.evaluation.retrieval import retrieval_metrics
from megaclass.parallel.groups import all_ranks

OPTIONS = {
    "gallery": ("", "labelled images among which IMAGES are searched; classes are matched by name"),
    "distractors": ("", "images of others, among which pairs of one identity are searched, as MegaFace does"),
}


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    gallery, distractors = options["gallery"], options["distractors"]
    if bool(gallery) == bool(distractors):
        raise UserError("identification needs one of --gallery and --distractors")
    both: Dataset
    both, (labels_P, *labels_G) = open_labelled(path, *[gallery] * bool(gallery))
    if distractors:
        both = ConcatDataset([both, open_dataset(distractors)], [path, distractors])

    def measure(embeddings_ND: np.ndarray) -> dict[str, Any]:
        probes_PD, others_ND = np.split(embeddings_ND, [len(labels_P)])
        if gallery:
            return retrieval_metrics(probes_PD, labels_P, (others_ND, labels_G[0]))
        return distractor_metrics(probes_PD, labels_P, others_ND)

    return Prepared(lambda shape: both, measure)


def distractor_metrics(probes_PD: np.ndarray, labels_P: np.ndarray, others_ND: np.ndarray) -> dict[str, Any]:
    """Identification among distractors, as MegaFace has it (Kemelmacher-Shlizerman et al., CVPR 2016).

    Of each ordered pair of images of one identity, one is the probe and the other is hidden among distractors:
    ``rank_1_among`` {"10", "100", .., N} is the share in which it is nearer than all of so many, the first of one
    random order. ``tar_at_far`` and what goes with it: genuine pairs are those of probes, impostor pairs those of a
    probe and a distractor. Embeddings are normalised. Every rank calls it, with the same arguments.
    """
    total = len(others_ND)
    sizes = [10**power for power in range(1, 10) if 10**power < total] + [total]
    others_ND = others_ND[np.random.default_rng(0).permutation(total)]
    order_P = np.argsort(labels_P, kind="stable")
    probes_PD, labels_P = probes_PD[order_P], labels_P[order_P]
    first_P, last_P = (np.searchsorted(labels_P, labels_P, side) for side in ("left", "right"))
    counts, hits_S = torch.zeros(2, BINS, dtype=torch.int64), torch.zeros(len(sizes), dtype=torch.int64)
    for block in my_blocks(len(labels_P), total):
        scores_BN, genuine = probes_PD[block] @ others_ND.T, []
        counts[1] += binned(scores_BN.ravel(), same=False)
        for probe, scores_N in enumerate(np.nan_to_num(scores_BN, nan=np.inf), block.start):
            mates = np.delete(np.arange(first_P[probe], last_P[probe]), probe - first_P[probe])
            genuine.append(probes_PD[mates] @ probes_PD[probe])
            hits_S += torch.tensor([(genuine[-1] > scores_N[:size].max()).sum() for size in sizes])
        counts[0] += binned(np.concatenate(genuine), same=True)
    metrics = of_counts(all_ranks().all_reduce_(counts).numpy(), LOW_FAR_TARGETS)
    hits = all_ranks().all_reduce_(hits_S).tolist()
    if not (pairs := metrics["genuine_pairs"]):
        raise UserError("identification: no identity among the probes has two images")
    among = {str(size): found / pairs for size, found in zip(sizes, hits, strict=True)}
    return {"rank_1_among": among, **metrics, "probes": len(labels_P), "distractors": total}
