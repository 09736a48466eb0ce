"""Retrieval of images of the same class: products, landmarks, birds; each among the others (SOP, CUB).

Shapes: Q = queries, N = images of the index, B = queries of a block, D = embedding columns, R = right answers of a
query.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from megaclass.errors import UserError, extra
from megaclass.evaluation.blocks import my_blocks
from megaclass.evaluation.metrics import BINS, binned, of_counts
from megaclass.evaluation.protocol import Prepared, open_labelled
from megaclass.parallel.groups import all_ranks, on_main_rank

OPTIONS = {"nmi": (False, "NMI of k-means clusters too (needs faiss)")}
RECALLS = (1, 2, 4, 5, 8, 10, 16, 20, 32, 100, 1000)
FPIRS = ("1e-3", "1e-2", "1e-1")


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    dataset, (labels_N,) = open_labelled(path)

    def measure(embeddings_ND: np.ndarray) -> dict[str, Any]:
        metrics = retrieval_metrics(embeddings_ND, labels_N)
        if options["nmi"]:
            metrics["nmi"] = on_main_rank(lambda: clustering_nmi(embeddings_ND, labels_N))
        return metrics

    return Prepared(lambda shape: dataset, measure)


def retrieval_metrics(
    queries_QD: np.ndarray, labels_Q: np.ndarray, index: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, Any]:
    """Rank the images of an index, embeddings (N, D) and labels (N,), for each query by cosine; without an index, all
    other queries. Returns

    - ``recall_at`` {"1", "2", ..}: share of queries with a right answer among the k nearest (Song, Xiang, Jegelka,
      Savarese, CVPR 2016); of an index with an image an identity, the rank-k identification rate;
    - ``map``: mean over queries of the average precision over all R right answers;
    - ``map_at_r``: the same over those among the R nearest, divided by R (Musgrave, Belongie, Lim, ECCV 2020);
    - ``tpir_at_fpir``, with an index: share of queries whose nearest right answer scores above a threshold, which
      FPIR x queries wrong answers of all queries reach, as InsightFace's ijb_1n.py has it; None where that is one or
      less. Cosines are counted in bins, see :func:`megaclass.evaluation.metrics.all_pairs_tar`;
    - ``queries``: those with a right answer, the others count in nothing but FPIR; ``images`` of the index.

    Embeddings are normalised; a wrong answer of the same cosine stands first. Every rank calls it.
    """
    index_ND, labels_N = index or (queries_QD, labels_Q)
    order_N = np.argsort(labels_N, kind="stable")
    first_Q, last_Q = (np.searchsorted(labels_N[order_N], labels_Q, side) for side in ("left", "right"))
    recalls = [k for k in RECALLS if k < len(labels_N)]
    sums, counts = np.zeros(3 + len(recalls)), torch.zeros(2, BINS, dtype=torch.int64)
    for block in my_blocks(len(labels_Q), len(labels_N)):
        scores_BN, best = queries_QD[block] @ index_ND.T, []
        for query, scores_N in enumerate(scores_BN, block.start):
            own = order_N[first_Q[query] : last_Q[query]]
            right_R = scores_N[own if index else own[own != query]]  # a query is no answer to itself
            scores_N[own] = -np.inf
            if not len(right_R):
                continue
            falling_R = np.sort(np.nan_to_num(right_R, nan=-2))[::-1]
            wrong_R = len(scores_N) - np.searchsorted(np.sort(scores_N), falling_R)  # NaN stands at the end
            place_R = np.arange(1, len(right_R) + 1)
            precision_R = place_R / (place_R + wrong_R)
            at_r = (precision_R * (place_R + wrong_R <= len(right_R))).sum() / len(right_R)
            sums += [1, precision_R.mean(), at_r, *(wrong_R[0] < k for k in recalls)]
            best.append(falling_R[0])
        if index:
            counts += torch.stack([binned(np.array(best), same=True), binned(scores_BN.ravel(), same=False)])
    queries, *shares = all_ranks().all_reduce_(torch.from_numpy(sums)).tolist()
    if not queries:
        raise UserError("no image has another of its class to be found")
    mean, at_r, *found = (share / queries for share in shares)
    recall = {str(k): share for k, share in zip(recalls, found, strict=True)}
    metrics = {
        "recall_at": recall,
        "map": mean,
        "map_at_r": at_r,
        "queries": int(queries),
        "images": len(labels_N),
    }
    if index:
        counts_2T = all_ranks().all_reduce_(counts).numpy()
        below = {far: math.ceil(float(far) * len(labels_Q) - 1e-6) - 1 for far in FPIRS}
        targets = {far: count / counts_2T[1].sum() for far, count in below.items()}
        metrics["tpir_at_fpir"] = of_counts(counts_2T, targets)["tar_at_far"]
    return metrics


def clustering_nmi(embeddings_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """Normalised mutual information, 2 I / (H + H), of the classes and of as many clusters of faiss's k-means."""
    faiss = extra("faiss", "gallery")
    classes_N = np.unique(labels_N, return_inverse=True)[1]
    rows_ND = np.nan_to_num(embeddings_ND.astype(np.float32))
    found = faiss.Kmeans(rows_ND.shape[1], 1 + int(classes_N.max()), seed=0, min_points_per_centroid=1)
    found.train(rows_ND)
    both_2N = np.stack([classes_N, found.index.search(rows_ND, 1)[1][:, 0]])
    shares = [np.unique(of, axis=-1, return_counts=True)[1] / len(labels_N) for of in (*both_2N, both_2N)]
    one, other, both = (-(share * np.log(share)).sum() for share in shares)
    return float(2 * (one + other - both) / (one + other)) if one + other else 1.0
