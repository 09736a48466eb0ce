"""Metrics, as functions on arrays: of verification and of classification.

Verification is how well a cosine tells two images of one identity from images of two.

Everything follows from one count: at each threshold, how many same-identity ("genuine") and how many
different-identity ("impostor") pairs score at or above it. Scores enter only by their order, so no figure
changes under a monotone transform of the scores, and a figure that the set is too small to support is
None instead of an extrapolation.

A NaN score is a comparison that failed. It counts as wrong at every threshold: the lowest score for a
genuine pair, the highest for an impostor pair, so that a broken model cannot gain by it.

Shapes: P = pairs, N = images, M = images that are counted, D = embedding columns,
T = thresholds (from accepting none to accepting all), B = images of a batch, C = classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megaclass.errors import UserError
from megaclass.evaluation.blocks import my_blocks
from megaclass.evaluation.pairs import PairSet
from megaclass.parallel.groups import all_ranks

FAR_TARGETS = {"1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}  # as results call them
LOW_FAR_TARGETS = {f"1e-{power}": 10.0**-power for power in range(6, 0, -1)}  # of sets made for them
ROC_POINTS = 400
# All pairs of so many images are 1.25e9, half a minute on one core; the FARs above are sharp long before.
MAX_IMAGES = 50_000
BINS = 1 << 20  # of cosines that are counted


def pair_scores(embeddings_ND: np.ndarray, pairs: PairSet) -> np.ndarray:
    """The cosine of each pair, fp32 (P,), from normalised embeddings."""
    return np.einsum("pd,pd->p", embeddings_ND[pairs.first], embeddings_ND[pairs.second])


def verification_metrics(
    scores: np.ndarray, same: np.ndarray, folds: int = 10, far_targets: Mapping[str, float] = FAR_TARGETS
) -> dict[str, Any]:
    """Score P pairs by the protocol of LFW's view 2 (UMass technical report 07-49).

    ``scores`` are similarities, ``same`` is true for pairs of one identity, in fold order; 2 <= folds <= P. Returns

    - ``pair_accuracy`` and ``pair_accuracy_std``: each fold is judged at the threshold that is best on the
      other folds; mean and standard deviation over the folds, in 0..1. All thresholds are tried, see
      :func:`insightface_accuracy` for fewer. Among equally good thresholds the strictest is taken, as there.
    - ``threshold``: the best one over all pairs (accept a score at or above it); None if that is to accept
      no pair.
    - ``auc``, ``tar_at_far``, ``threshold_at_far``, ``roc``: see :func:`curve`; ``pairs``: P.
    """
    values, ranks = _ranked(scores, same)
    genuine_T, impostor_T = _accepted(*_histograms(ranks, same, len(values)))
    accuracies = []
    for fold in np.array_split(np.arange(len(same)), folds):  # in order, unshuffled: as sklearn's KFold cuts
        tested_genuine_T, tested_impostor_T = _accepted(*_histograms(ranks[fold], same[fold], len(values)))
        # Correct answers, less a constant: the impostors that no threshold has accepted yet.
        elsewhere_T = (genuine_T - tested_genuine_T) - (impostor_T - tested_impostor_T)
        best = int(elsewhere_T.argmax())
        rejected_impostors = tested_impostor_T[-1] - tested_impostor_T[best]
        accuracies.append((tested_genuine_T[best] + rejected_impostors) / len(fold))
    # T counts down from the highest score, with "accept none" in front.
    cosine_T = np.append(np.inf, values[::-1])
    return {
        "pair_accuracy": float(np.mean(accuracies)),
        "pair_accuracy_std": float(np.std(accuracies)),
        "threshold": _finite(cosine_T[(genuine_T - impostor_T).argmax()]),
        "pairs": len(same),
        **curve(genuine_T, impostor_T, cosine_T, far_targets),
    }


def insightface_accuracy(scores: np.ndarray, same: np.ndarray, folds: int = 10) -> dict[str, Any]:
    """What of :func:`verification_metrics` differs where thresholds are those of InsightFace's published accuracies.

    It tries squared distances 0, 0.01, .. 3.99 and accepts what is nearer (calculate_roc of arcface_torch's
    eval/verification.py), so its figure may differ from ours by a few pairs in thousands, the more the closer the
    scores of a model lie together. ``scores`` are cosines, ``threshold`` is one too.
    """
    grid = np.append(np.arange(0, 4, 0.01), np.inf)
    # A pair counts as the widest cosine at which it is accepted: pairs between two thresholds are alike.
    nearest = np.searchsorted(grid[:-1], 2 - 2 * scores.astype(np.float64), side="right")
    rounded = np.where(np.isnan(scores), np.nan, 1 - grid[nearest] / 2)
    found = verification_metrics(rounded, same, folds)
    names = ("pair_accuracy", "pair_accuracy_std", "threshold")
    return {"thresholds": "insightface", **{name: found[name] for name in names}}


def all_pairs_tar(
    embeddings_ND: np.ndarray,
    labels_N: np.ndarray,
    far_targets: Mapping[str, float] = FAR_TARGETS,
    max_images: int = MAX_IMAGES,
) -> dict[str, Any]:
    """Verify every pair of a labelled set, so that a small set still has the impostors for a low FAR.

    The embeddings are normalised; rows with a NaN count as wrong in every pair. Returns ``auc``, ``tar_at_far``,
    ``threshold_at_far``, ``roc`` (see :func:`curve`), ``genuine_pairs``, ``impostor_pairs`` and ``images``: of a set
    with more than ``max_images``, that many are counted, always the same ones.

    Every rank must call it, with the same arguments: each counts its share of the pairs, and all return the same.
    Cosines are counted in 2**20 bins of 1.9e-6, the size of their rounding error in fp32, and a bin is
    accepted as a whole: the FAR is never understated. Memory is a copy of the embeddings and one block of scores.
    """
    counted = _counted_images(labels_N, max_images)
    embeddings_MD = embeddings_ND[counted].astype(np.float32, copy=False)  # a copy by the indexing
    embeddings_MD[~np.isfinite(embeddings_MD).all(axis=1)] = np.nan
    labels_M = labels_N[counted]
    counts = _count_pairs(embeddings_MD, labels_M)
    return of_counts(all_ranks().all_reduce_(counts).numpy(), far_targets) | {"images": len(labels_M)}


def _counted_images(labels: np.ndarray, limit: int) -> np.ndarray:
    """Indices of at most ``limit`` images, in order: int64 (M,).

    Whole identities as far as it goes, since an image without another of its identity adds no genuine pair:
    each identity gives at most its share of ``limit``, or ten if that is less.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    _, identity_of, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    places = rng.permutation(len(sizes))  # of the identities
    by_place = np.argsort(places[identity_of], kind="stable")
    sizes_by_place = sizes[np.argsort(places)]
    starts = np.repeat(np.cumsum(sizes_by_place) - sizes_by_place, sizes_by_place)
    within = np.arange(len(labels)) - starts < max(10, limit // len(sizes))
    return np.sort(order[by_place[within][:limit]])


def _count_pairs(embeddings_MD: np.ndarray, labels_M: np.ndarray) -> Tensor:
    """How many genuine (row 0) and impostor pairs (row 1) of this rank's blocks have each score."""
    counts = torch.zeros(2, BINS, dtype=torch.int64)
    for block in my_blocks(len(labels_M), len(labels_M)):
        # Each pair once: the images from this row on, and of those only the ones after it.
        scores = embeddings_MD[block] @ embeddings_MD[block.start :].T
        after = np.arange(scores.shape[1]) > np.arange(scores.shape[0])[:, None]
        same = labels_M[block][:, None] == labels_M[block.start :]
        genuine, impostor = scores[after & same], scores[after & ~same]
        counts += torch.stack([binned(genuine, same=True), binned(impostor, same=False)])
    return counts


def binned(scores_K: np.ndarray, same: bool) -> Tensor:
    """How many of these cosines, of genuine or of impostor pairs, are in each bin: int64 (BINS,). The outermost are for
    failed comparisons, beyond every cosine."""
    bins_K = np.clip((scores_K + 1) * (BINS // 2), 1, BINS - 2)
    bins_K[np.isnan(scores_K)] = 0 if same else BINS - 1
    return torch.from_numpy(np.bincount(bins_K.astype(np.int32), minlength=BINS))


def of_counts(counts: np.ndarray, far_targets: Mapping[str, float]) -> dict[str, Any]:
    """See :func:`curve`; and ``genuine_pairs`` and ``impostor_pairs``. counts: of both in each bin, int64 (2, BINS)."""
    genuine_T, impostor_T = _accepted(*counts)
    lowest = np.arange(BINS) / (BINS // 2) - 1  # cosine of a bin
    lowest[0], lowest[-1] = -np.inf, np.inf
    pairs = {"genuine_pairs": int(genuine_T[-1]), "impostor_pairs": int(impostor_T[-1])}
    return curve(genuine_T, impostor_T, np.append(np.inf, lowest[::-1]), far_targets) | pairs


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def curve(
    genuine_T: np.ndarray, impostor_T: np.ndarray, cosine_T: np.ndarray, far_targets: Mapping[str, float]
) -> dict[str, Any]:
    """What follows from the accepted counts, from accepting none to accepting all, and the lowest cosine accepted.

    - ``tar_at_far``, ``{"1e-2": ..}``: the exact share of genuine pairs accepted where at most the target share of
      impostor pairs is. A target of 1e-4 needs 10,000 impostor pairs to mean one of them; below 1/FAR pairs the
      value is None.
    - ``threshold_at_far``, likewise: the cosine of the lowest pair accepted there (accept it and any above); None too
      where no pair is accepted.
    - ``auc``: the area under the ROC curve by trapezia: a tie of genuine and impostor counts half. None without
      pairs of both kinds.
    - ``roc``, ``{"far": [..], "tar": [..]}``: points of the curve, at most ``ROC_POINTS``, FAR rising evenly on a
      logarithmic axis, each the highest TAR at that FAR or below. Empty without pairs of both kinds.
    """
    genuine, impostors, accepted_T = int(genuine_T[-1]), int(impostor_T[-1]), genuine_T + impostor_T
    found: dict[str, Any] = {
        "auc": None,
        "tar_at_far": {},
        "threshold_at_far": {},
        "roc": {"far": [], "tar": []},
    }
    for name, far in far_targets.items():
        allowed = int(far * impostors + 1e-6)  # 1e-3 of 3,000 is three, whatever the floating point says
        last = int(np.searchsorted(impostor_T, allowed, side="right")) - 1
        known = genuine > 0 and allowed > 0
        found["tar_at_far"][name] = int(genuine_T[last]) / genuine if known else None
        first = np.searchsorted(accepted_T, accepted_T[last])  # between the two no pair has its score
        found["threshold_at_far"][name] = _finite(cosine_T[first]) if known else None
    if genuine == 0 or impostors == 0:
        return found
    area = np.dot(np.diff(impostor_T).astype(float), genuine_T[1:] + genuine_T[:-1]) / 2
    allowed_T = np.concatenate([[0], np.geomspace(1, impostors, ROC_POINTS - 1).round()])
    at = np.unique(np.searchsorted(impostor_T, allowed_T, side="right") - 1)
    roc = {"far": (impostor_T[at] / impostors).tolist(), "tar": (genuine_T[at] / genuine).tolist()}
    return found | {"auc": float(area / (genuine * impostors)), "roc": roc}


def one_shot_accuracy(
    embeddings_ND: np.ndarray, labels_N: np.ndarray, ways: int = 20, episodes: int = 2000, seed: int = 0
) -> tuple[float | None, float | None]:
    """k-way one-shot classification (Lake, Salakhutdinov, Tenenbaum, Science 350, 2015), over the whole set.

    An episode draws ``ways`` classes from those with two images or more, one support image of each, and
    as query another image of the first class; the nearest support image by cosine is the answer. A tie or
    a NaN is a wrong answer. The embeddings are normalised. Returns accuracy and standard error, both None if
    fewer than ``ways`` classes have two images.
    """
    rng = np.random.default_rng(seed)
    _, class_of, sizes = np.unique(labels_N, return_inverse=True, return_counts=True)
    starts, order = np.cumsum(sizes) - sizes, np.argsort(class_of, kind="stable")
    eligible = np.flatnonzero(sizes > 1)
    if len(eligible) < ways:
        return None, None
    correct = 0
    for _ in range(episodes):
        classes = rng.choice(eligible, size=ways, replace=False)
        shown = rng.integers(sizes[classes])
        asked = (shown[0] + rng.integers(1, sizes[classes[0]])) % sizes[classes[0]]
        support = embeddings_ND[order[starts[classes] + shown]]
        scores = support @ embeddings_ND[order[starts[classes[0]] + asked]]
        correct += bool((scores[0] > scores[1:]).all())
    accuracy = correct / episodes
    return accuracy, (accuracy * (1 - accuracy) / episodes) ** 0.5


def _ranked(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct scores, rising, and the rank of each pair's score among them; NaN counts as wrong."""
    scores = scores.astype(np.float64)
    scores = np.where(np.isnan(scores), np.where(same, -np.inf, np.inf), scores)
    return np.unique(scores, return_inverse=True)


def _histograms(ranks: np.ndarray, same: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """How many genuine and how many impostor pairs have each rank: (bins,) each."""
    return np.bincount(ranks[same], minlength=bins), np.bincount(ranks[~same], minlength=bins)


def _accepted(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts per score, rising -> counts accepted at each threshold, from none to all: (T,) each."""
    none = np.zeros(1, dtype=np.int64)
    return np.append(none, np.cumsum(genuine[::-1])), np.append(none, np.cumsum(impostor[::-1]))


# -- classification --------------------------------------------------------------------------------


def topk_counts(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """The int64 counts ``[top-1 hits, top-5 hits, images]`` of one batch, on the logits' device.

    With fewer than five classes, "top 5" means all. A row that holds a NaN is a miss (top-k would rank it first).
    """
    best_BK = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
    hits_BK = (best_BK == labels_B[:, None]) & ~logits_BC.isnan().any(dim=1, keepdim=True)
    images = torch.tensor(len(labels_B), device=logits_BC.device)
    return torch.stack([hits_BK[:, 0].sum(), hits_BK.sum(), images])


def classification_metrics(counts: Tensor) -> dict[str, float]:
    """``{"top1", "top5"}`` in 0..1 over the ``images`` of all ranks, from each rank's sum of :func:`topk_counts`, zeros
    of one without images. Every rank must call. Raises UserError if no rank had an image."""
    top1, top5, images = all_ranks().all_reduce_(counts.clone()).tolist()
    if images == 0:
        raise UserError("evaluation: there is no image to classify")
    return {"top1": top1 / images, "top5": top5 / images, "images": images}
