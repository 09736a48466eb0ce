"""Retrieval of images of the same class: products, landmarks, birds.

Shapes: Q = queries, N = images of the index, B = queries of a block, D = embedding columns, R = right answers of a
query.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from megaclass.data.dataset import Dataset
from megaclass.data.open import open_dataset
from megaclass.errors import UserError
from megaclass.evaluate.metrics import Show, my_blocks, silent
from megaclass.evaluate.protocol import Prepared, two_sets
from megaclass.parallel.groups import all_ranks, on_main_rank

IMAGES = "labelled images; each is searched among the others, as on SOP, CUB and Cars"
OPTIONS = {
    "gallery": ("", "search them among these labelled images instead, as on In-Shop"),
    "nmi": (False, "NMI of k-means clusters too (needs faiss or scikit-learn)"),
}
RECALLS = (1, 2, 4, 8, 10, 16, 32, 100, 1000)


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    dataset: Dataset
    if options["gallery"]:
        dataset, queries_Q, index_N = two_sets(path, options["gallery"], "--gallery")
    else:
        dataset = open_dataset(path)
        queries_Q = dataset.labels()

    def measure(embeddings_ND: np.ndarray, show: Show) -> dict[str, Any]:
        asked_QD, index_ND = np.split(embeddings_ND, [len(queries_Q)])
        index = (index_ND, index_N) if options["gallery"] else None
        metrics = retrieval_metrics(asked_QD, queries_Q, index, show)
        if options["nmi"]:
            metrics["nmi"] = on_main_rank(lambda: clustering_nmi(asked_QD, queries_Q))
        return metrics

    return Prepared(len(dataset), lambda: dataset, measure)


def retrieval_metrics(
    queries_QD: np.ndarray,
    labels_Q: np.ndarray,
    index: tuple[np.ndarray, np.ndarray] | None = None,
    show: Show = silent,
) -> dict[str, Any]:
    """Rank the images of an index, embeddings (N, D) and labels (N,), for each query by cosine; without an index, all
    other queries. Returns

    - ``recall_at_k`` {"1", "2", ..}: share of queries with a right answer among the k nearest (Song, Xiang, Jegelka,
      Savarese, CVPR 2016);
    - ``map``: mean over queries of the average precision over all R right answers;
    - ``map_at_r``: the same over those among the R nearest, divided by R (Musgrave, Belongie, Lim, ECCV 2020);
    - ``queries``: those with a right answer, the others count in nothing; ``images`` of the index.

    Embeddings are normalised; a wrong answer of the same cosine stands first. Every rank calls it.
    """
    index_ND, labels_N = index or (queries_QD, labels_Q)
    order_N = np.argsort(labels_N, kind="stable")
    first_Q, last_Q = (np.searchsorted(labels_N[order_N], labels_Q, side) for side in ("left", "right"))
    recalls = [k for k in RECALLS if k < len(labels_N)]
    sums = np.zeros(3 + len(recalls))
    for block in my_blocks(len(labels_Q), len(labels_N), show):
        scores_BN = queries_QD[block] @ index_ND.T
        for query, scores_N in enumerate(scores_BN, block.start):
            own = order_N[first_Q[query] : last_Q[query]]
            right_R = scores_N[own if index else own[own != query]]  # a query is no answer to itself
            if not len(right_R):
                continue
            scores_N[own] = -np.inf
            falling_R = np.sort(np.nan_to_num(right_R, nan=-2))[::-1]
            wrong_R = len(scores_N) - np.searchsorted(np.sort(scores_N), falling_R)  # NaN stands at the end
            place_R = np.arange(1, len(right_R) + 1)
            precision_R = place_R / (place_R + wrong_R)
            at_r = (precision_R * (place_R + wrong_R <= len(right_R))).sum() / len(right_R)
            sums += [1, precision_R.mean(), at_r, *(wrong_R[0] < k for k in recalls)]
    queries, *shares = all_ranks().all_reduce_(torch.from_numpy(sums)).tolist()
    if not queries:
        raise UserError("retrieval: no query has another image of its class")
    mean_precision, at_r, *found = (share / queries for share in shares)
    return {
        "recall_at_k": {str(k): share for k, share in zip(recalls, found, strict=True)},
        "map": mean_precision,
        "map_at_r": at_r,
        "queries": int(queries),
        "images": len(labels_N),
    }


def clustering_nmi(embeddings_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """Normalised mutual information of the classes and of as many clusters of k-means: 2 I / (H + H), 0..1."""
    _, classes_N = np.unique(labels_N, return_inverse=True)
    clusters_N = _k_means(np.nan_to_num(embeddings_ND.astype(np.float32)), int(classes_N.max()) + 1)
    pairs = np.unique(np.stack([classes_N, clusters_N]), axis=1, return_counts=True)[1]
    both, one, other = (
        _entropy(counts) for counts in (pairs, np.bincount(classes_N), np.bincount(clusters_N))
    )
    return 2 * (one + other - both) / (one + other) if one + other else 1.0


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _k_means(rows_ND: np.ndarray, clusters: int) -> np.ndarray:
    """The cluster of each row, by faiss where it is installed, else by scikit-learn."""
    try:
        import faiss

        found = faiss.Kmeans(rows_ND.shape[1], clusters, niter=20, seed=0, min_points_per_centroid=1)
        found.train(rows_ND)
        return np.asarray(found.index.search(rows_ND, 1)[1][:, 0])
    except ImportError:
        pass
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise UserError("--nmi needs faiss or scikit-learn: pip install 'megaclass[gallery]'") from None
    return np.asarray(KMeans(clusters, n_init=1, random_state=0).fit_predict(rows_ND))
