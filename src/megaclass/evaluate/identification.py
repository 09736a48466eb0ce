"""1:N identification: whose image is it, among the identities of a gallery or among many distractors.

Shapes: P = probes, G = gallery images, I = identities of the gallery, N = distractors, B = probes of a block, S =
numbers of distractors, D = embedding columns, K = what was found.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from megaclass.data.dataset import Dataset
from megaclass.data.open import open_dataset
from megaclass.data.views import ConcatDataset
from megaclass.errors import UserError
from megaclass.evaluate import metrics
from megaclass.evaluate.blocks import my_blocks
from megaclass.evaluate.metrics import BINS, bins_of
from megaclass.evaluate.protocol import Prepared, open_labelled
from megaclass.parallel.groups import all_ranks, gather_objects

OPTIONS = {
    "gallery": ("", "labelled images among which IMAGES are searched; classes are matched by name"),
    "distractors": ("", "images of others, among which pairs of one identity are searched, as MegaFace does"),
}
RANKS = (1, 5, 10)
FPIR_TARGETS = {"1e-3": 1e-3, "1e-2": 1e-2, "1e-1": 1e-1}


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    gallery, distractors = options["gallery"], options["distractors"]
    if bool(gallery) == bool(distractors):
        raise UserError("identification needs one of --gallery and --distractors")
    both: Dataset
    if gallery:
        both, (labels_P, labels_G) = open_labelled(path, gallery)
    else:
        probes, (labels_P,) = open_labelled(path)
        both = ConcatDataset([probes, open_dataset(distractors)], [path, distractors])

    def measure(embeddings_ND: np.ndarray) -> dict[str, Any]:
        probes_PD, others_ND = np.split(embeddings_ND, [len(labels_P)])
        if gallery:
            return identification_metrics(probes_PD, labels_P, others_ND, labels_G)
        return distractor_metrics(probes_PD, labels_P, others_ND)

    return Prepared(lambda shape: both, measure)


def identification_metrics(
    probes_PD: np.ndarray, labels_P: np.ndarray, gallery_GD: np.ndarray, labels_G: np.ndarray
) -> dict[str, Any]:
    """Search each probe among the identities of a gallery; the cosine of one is that of its nearest image.

    - ``rank`` {"1", "5", "10"}: share of probes whose identity is among the k nearest; a tie is wrong;
    - ``tpir_at_fpir``: share whose identity scores above a threshold, which FPIR x probes comparisons of a probe with
      another identity reach, as InsightFace's ijb_1n.py has it; None where that is less than one.

    Probes whose identity the gallery does not have, ``strangers``, count in the latter alone, as others. Embeddings are
    normalised. Every rank calls it, with the same arguments.
    """
    order_G = np.argsort(labels_G, kind="stable")
    gallery_GD = gallery_GD[order_G]
    identities_I, start_I = np.unique(labels_G[order_G], return_index=True)
    place_P, known_P = np.searchsorted(identities_I, labels_P), np.isin(labels_P, identities_I)
    if not known_P.any():
        raise UserError(
            "identification: no probe is of an identity of the gallery; classes are matched by name"
        )
    places = {far: math.ceil(share * len(labels_P) - 1e-6) - 1 for far, share in FPIR_TARGETS.items()}
    most = 1 + max(places.values())
    own, ranks, others = [np.empty(0)], [np.empty(0)], np.empty(0)
    for block in my_blocks(len(labels_P), len(labels_G)):
        scores_BI = np.maximum.reduceat(probes_PD[block] @ gallery_GD.T, start_I, axis=1)
        mates = np.flatnonzero(known_P[block]), place_P[block][known_P[block]]
        own.append(np.nan_to_num(scores_BI[mates], nan=-np.inf))
        np.nan_to_num(scores_BI, copy=False, nan=np.inf)
        scores_BI[mates] = -np.inf
        ranks.append(1 + (scores_BI[mates[0]] >= own[-1][:, None]).sum(1))
        others = np.append(others, scores_BI)
        others = np.partition(others, max(0, len(others) - most))[-most:]
    of_ranks = gather_objects((np.concatenate(own), np.concatenate(ranks), others))
    own_K, rank_K, others_K = (np.concatenate(parts) for parts in zip(*of_ranks, strict=True))
    falling_K = np.sort(others_K)[::-1]
    return {
        "rank": {str(k): float((rank_K <= k).mean()) for k in RANKS},
        "tpir_at_fpir": {
            far: float((own_K > falling_K[place]).mean())
            if len(labels_P) * FPIR_TARGETS[far] > 1 - 1e-6
            else None
            for far, place in places.items()
        },
        "probes": len(labels_P),
        "strangers": int((~known_P).sum()),
        "identities": len(identities_I),
    }


def distractor_metrics(
    probes_PD: np.ndarray, labels_P: np.ndarray, distractors_ND: np.ndarray
) -> dict[str, Any]:
    """Identification among distractors, as MegaFace has it (Kemelmacher-Shlizerman et al., CVPR 2016).

    Of each ordered pair of images of one identity, one is the probe and the other is hidden among distractors:
    ``rank_1_among`` {"10", "100", .., N} is the share in which it is nearer than all of so many, the first of one
    random order. ``tar_at_far`` and what goes with it: genuine pairs are those of probes, impostor pairs those of a
    probe and a distractor. Embeddings are normalised. Every rank calls it, with the same arguments.
    """
    total = len(distractors_ND)
    sizes = [10**power for power in range(1, 10) if 10**power < total] + [total]
    distractors_ND = distractors_ND[np.random.default_rng(0).permutation(total)]
    order_P = np.argsort(labels_P, kind="stable")
    probes_PD, labels_P = probes_PD[order_P], labels_P[order_P]
    first_P, last_P = (np.searchsorted(labels_P, labels_P, side) for side in ("left", "right"))
    counts, hits_S = torch.zeros(2, BINS, dtype=torch.int64), torch.zeros(len(sizes), dtype=torch.int64)
    for block in my_blocks(len(labels_P), total):
        scores_BN = probes_PD[block] @ distractors_ND.T
        counts[1] += _binned(scores_BN.ravel(), same=False)
        np.nan_to_num(scores_BN, copy=False, nan=np.inf)
        genuine = []
        for probe, scores_N in enumerate(scores_BN, block.start):
            mates = np.delete(np.arange(first_P[probe], last_P[probe]), probe - first_P[probe])
            genuine.append(probes_PD[mates] @ probes_PD[probe])
            hits_S += torch.tensor([(genuine[-1] > scores_N[:size].max()).sum() for size in sizes])
        counts[0] += _binned(np.concatenate(genuine), same=True)
    counted = metrics.of_counts(all_ranks().all_reduce_(counts).numpy(), metrics.LOW_FAR_TARGETS)
    hits = all_ranks().all_reduce_(hits_S).tolist()
    if not (pairs := counted["genuine_pairs"]):
        raise UserError("identification: no identity among the probes has two images")
    among = {str(size): found / pairs for size, found in zip(sizes, hits, strict=True)}
    return {"rank_1_among": among, **counted, "probes": len(labels_P), "distractors": total}


def _binned(scores_K: np.ndarray, same: bool) -> torch.Tensor:
    return torch.from_numpy(np.bincount(bins_of(scores_K, np.full(len(scores_K), same)), minlength=BINS))
