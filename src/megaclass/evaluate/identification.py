"""1:N identification: whose image is it, among the identities of a gallery or among many distractors.

Shapes: P = probes, G = gallery images, I = identities of the gallery, N = distractors, B = probes of a block, D =
embedding columns, M = probes whose identity is in the gallery, S = numbers of distractors.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from megaclass.data.open import open_dataset
from megaclass.data.views import ConcatDataset
from megaclass.errors import UserError
from megaclass.evaluate.metrics import (
    BINS,
    LOW_FAR_TARGETS,
    Show,
    accepted,
    bin_cosines,
    bins_of,
    curve,
    my_blocks,
    silent,
)
from megaclass.evaluate.protocol import Prepared, two_sets
from megaclass.parallel.groups import all_ranks

IMAGES = "probes: labelled images"
OPTIONS = {
    "gallery": ("", "labelled images among which probes are searched; classes are matched by name"),
    "distractors": (
        "",
        "images of other people, among which each pair of one identity is searched, as MegaFace does",
    ),
}
RANKS = (1, 5, 10)
FPIR_TARGETS = {"1e-3": 1e-3, "1e-2": 1e-2, "1e-1": 1e-1}


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    gallery, distractors = options["gallery"], options["distractors"]
    if bool(gallery) == bool(distractors):
        raise UserError("identification needs one of --gallery and --distractors")
    if gallery:
        both, labels_P, labels_G = two_sets(path, gallery, "--gallery")

        def measure(embeddings_ND: np.ndarray, show: Show) -> dict[str, Any]:
            probes_PD, gallery_GD = np.split(embeddings_ND, [len(labels_P)])
            return identification_metrics(probes_PD, labels_P, gallery_GD, labels_G, show)
    else:
        probes = open_dataset(path)
        both, labels_P = (
            ConcatDataset([probes, open_dataset(distractors)], [path, distractors]),
            probes.labels(),
        )

        def measure(embeddings_ND: np.ndarray, show: Show) -> dict[str, Any]:
            probes_PD, others_ND = np.split(embeddings_ND, [len(labels_P)])
            return distractor_metrics(probes_PD, labels_P, others_ND, show)

    return Prepared(len(both), lambda: both, measure)


class Found(NamedTuple):
    """What a search found. mate: cosine of the probe's own identity, -inf where the gallery has none of it; rank: its
    place among the identities, ties and failed comparisons wrong; other: highest cosine of another identity. (P,) each.
    others: the highest cosines of all probes with other identities, falling."""

    mate: np.ndarray
    rank: np.ndarray
    other: np.ndarray
    others: np.ndarray


def search(
    probes_PD: np.ndarray,
    labels_P: np.ndarray,
    gallery_GD: np.ndarray,
    labels_G: np.ndarray,
    keep: int = 0,
    show: Show = silent,
) -> Found:
    """Search each probe in a gallery, in which the cosine of an identity is that of its nearest image.

    Embeddings are normalised. ``keep``: how many ``others`` to give. Every rank calls it, with the same arguments.
    """
    order_G = np.argsort(labels_G, kind="stable")
    gallery_GD = gallery_GD[order_G]
    identities_I, starts_I = np.unique(labels_G[order_G], return_index=True)
    place_P = np.searchsorted(identities_I, labels_P)
    known_P = np.isin(labels_P, identities_I)
    found_3P = np.zeros((3, len(labels_P)))  # each rank fills its own blocks
    others = np.empty(0, gallery_GD.dtype)
    for block in my_blocks(len(labels_P), len(labels_G), show):
        scores_BI = np.maximum.reduceat(probes_PD[block] @ gallery_GD.T, starts_I, axis=1)
        rows = np.flatnonzero(known_P[block])
        mate_B = np.full(len(scores_BI), -np.inf)
        mate_B[rows] = np.nan_to_num(scores_BI[rows, place_P[block][rows]], nan=-np.inf)
        np.nan_to_num(scores_BI, copy=False, nan=np.inf)
        scores_BI[rows, place_P[block][rows]] = -np.inf
        found_3P[:, block] = mate_B, 1 + (scores_BI >= mate_B[:, None]).sum(1), scores_BI.max(1)
        if keep:
            others = np.concatenate([others, scores_BI.ravel()])
            others = np.partition(others, max(0, len(others) - keep))[-keep:]
    all_ranks().all_reduce_(torch.from_numpy(found_3P))
    padded = torch.full((keep,), -np.inf, dtype=torch.float64)
    padded[: len(others)] = torch.from_numpy(others)
    gathered = np.sort(all_ranks().all_gather_rows(padded).numpy())[::-1][:keep]
    return Found(found_3P[0], found_3P[1].astype(np.int64), found_3P[2], gathered)


def identification_metrics(
    probes_PD: np.ndarray,
    labels_P: np.ndarray,
    gallery_GD: np.ndarray,
    labels_G: np.ndarray,
    show: Show = silent,
) -> dict[str, Any]:
    """``rank_k`` {"1", "5", "10"}: share of probes, of those whose identity the gallery has, that find it among the k
    nearest. ``tpir_at_fpir``: of the same, the share whose identity scores above a threshold that at most this share
    of the other probes exceeds (open set: NIST, FRVT 1:N, without a limit of ranks). None: too few, or no, such probes.
    """
    found = search(probes_PD, labels_P, gallery_GD, labels_G, show=show)
    known_P = np.isin(labels_P, labels_G)
    if not known_P.any():
        raise UserError(
            "identification: no probe is of an identity in the gallery; classes are matched by name"
        )
    strangers = np.sort(found.other[~known_P])[::-1]
    return {
        **rank_shares(found.rank[known_P]),
        "tpir_at_fpir": tpir(found.mate[known_P], strangers, len(strangers), FPIR_TARGETS),
        "probes": len(labels_P),
        "probes_without_mate": int((~known_P).sum()),
        "identities": len(np.unique(labels_G)),
    }


def rank_shares(rank_M: np.ndarray) -> dict[str, Any]:
    return {"rank_k": {str(k): float((rank_M <= k).mean()) for k in RANKS}}


def tpir(
    mate_M: np.ndarray, falling: np.ndarray, base: int, targets: Mapping[str, float]
) -> dict[str, float | None]:
    """The share of mates above the score that target x base searches reach, of the ``falling`` ones that should not."""
    places = {name: math.ceil(target * base - 1e-6) - 1 for name, target in targets.items()}
    return {
        name: float((mate_M > falling[places[name]]).mean()) if target * base > 1 - 1e-6 else None
        for name, target in targets.items()
    }


def distractor_metrics(
    probes_PD: np.ndarray, labels_P: np.ndarray, distractors_ND: np.ndarray, show: Show = silent
) -> dict[str, Any]:
    """Identification among distractors, as MegaFace has it (Kemelmacher-Shlizerman et al., CVPR 2016).

    For each ordered pair of images of one identity, one is the probe and the other hidden among distractors:
    ``rank_1_at_distractors`` {"10", "100", .., N} is the share in which it is nearer than all of so many, the first of
    one random order. ``tar_at_far`` and what goes with it: genuine pairs are those of the probes, impostor pairs
    those of a probe and a distractor. Embeddings are normalised. Every rank calls it.
    """
    total = len(distractors_ND)
    sizes = [10**power for power in range(1, 10) if 10**power < total] + [total]
    distractors_ND = distractors_ND[np.random.default_rng(0).permutation(total)]
    order_P = np.argsort(labels_P, kind="stable")
    probes_PD, labels_P = probes_PD[order_P], labels_P[order_P]
    first_P, last_P = (np.searchsorted(labels_P, labels_P, side) for side in ("left", "right"))
    counts_2T, hits_S = np.zeros((2, BINS), np.int64), np.zeros(len(sizes), np.int64)
    for block in my_blocks(len(labels_P), total, show):
        scores_BN = probes_PD[block] @ distractors_ND.T
        bins = bins_of(scores_BN.ravel(), np.zeros(scores_BN.size, bool))
        counts_2T[1] += np.bincount(bins, minlength=BINS)
        np.nan_to_num(scores_BN, copy=False, nan=np.inf)
        genuine = []
        for row, probe in enumerate(range(block.start, block.stop)):
            mates = np.delete(np.arange(first_P[probe], last_P[probe]), probe - first_P[probe])
            cosines = probes_PD[mates] @ probes_PD[probe]
            hits_S += [int((cosines > scores_BN[row, :size].max()).sum()) for size in sizes]
            genuine.append(cosines)
        cosines = np.concatenate(genuine)
        counts_2T[0] += np.bincount(bins_of(cosines, np.ones(len(cosines), bool)), minlength=BINS)
    for counts in (counts_2T, hits_S):
        all_ranks().all_reduce_(torch.from_numpy(counts))
    genuine_T, impostor_T = accepted(*counts_2T)
    if not genuine_T[-1]:
        raise UserError("identification: no identity among the probes has two images")
    return {
        "rank_1_at_distractors": {
            str(size): int(hits) / int(genuine_T[-1]) for size, hits in zip(sizes, hits_S, strict=True)
        },
        **curve(genuine_T, impostor_T, bin_cosines(), LOW_FAR_TARGETS),
        "probes": len(labels_P),
        "distractors": total,
        "genuine_pairs": int(genuine_T[-1]),
        "impostor_pairs": int(impostor_T[-1]),
    }
