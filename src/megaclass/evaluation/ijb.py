"""IJB-B and IJB-C as arcface_torch's eval_ijbc.py scores them, 1:1, and InsightFace's ijb_1n.py, 1:N.

A template is several images of one person; those of one video (``media``) count as one. The directory holds
``meta/ijbc_face_tid_mid.txt`` (a line an image: name, template, media), ``meta/ijbc_template_pair_label.txt`` (two
templates, 1 for one person), ``meta/ijbc_name_5pts_score.txt`` (name, five points, score of the detector) and
``loose_crop/``; for 1:N ``meta/ijbc_1N_gallery_G1.csv``, ``.._G2.csv`` (IJB-B: S1, S2) and ``.._probe_mixed.csv``.

Shapes: N = images, D = embedding columns, T = templates, P = pairs, K = different scores.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.sparse import csr_array

from megaclass.data.faces import similarity, template
from megaclass.data.imagelist import ImageList
from megaclass.errors import UserError, first_line
from megaclass.evaluation.blocks import my_blocks
from megaclass.evaluation.metrics import LOW_FAR_TARGETS, curve
from megaclass.evaluation.protocol import Prepared
from megaclass.evaluation.retrieval import retrieval_metrics
from megaclass.files import open_regular
from megaclass.parallel.groups import all_ranks, on_main_rank

OPTIONS = {
    "no-norm": (False, "images count alike in a template, not by the norms of their embeddings (N0)"),
    "no-detector": (False, "nor by the scores of the detector (D0)"),
}
_BLOCK_COLUMNS = 64  # of embeddings that are fp64 at once


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    meta = Path(path) / "meta"
    found = sorted(meta.glob("ijb[bc]_face_tid_mid.txt"))
    if len(found) != 1:
        raise UserError(f"{path}: not one meta/ijb?_face_tid_mid.txt; name the directory of IJB-B or IJB-C")
    start = str(found[0]).removesuffix("face_tid_mid.txt")
    template_N, media_N = _table(found[0], (1, 2)).T
    listed = f"{start}name_5pts_score.txt"
    names, numbers = _table(listed, (0,), str)[:, 0].tolist(), _table(listed, range(1, 12), np.float64)
    if len(names) != len(template_N):
        raise UserError(
            f"{listed}: {len(names)} images, but {found[0].name} has {len(template_N)}; bring both as published"
        )
    templates_T = np.unique(template_N)
    listed = f"{start}template_pair_label.txt"
    pairs_P3 = _table(listed, (0, 1, 2))
    pairs_P2, same_P = _places(pairs_P3[:, :2], templates_T, listed), pairs_P3[:, 2] == 1
    if set(np.unique(pairs_P3[:, 2])) != {0, 1}:
        raise UserError(f"{listed}: the third number is 1 for pairs of one person, 0 for others, and there are both")
    searched = [*sorted(meta.glob("ijb?_1N_gallery_*.csv")), *meta.glob("ijb?_1N_probe_mixed.csv")]
    if len(searched) not in (0, 3):
        raise UserError(f"{meta}: 1:N needs two lists .._1N_gallery_.. and .._1N_probe_mixed.csv; bring all, or none")
    subjects = [_subjects(one, templates_T) for one in searched]

    def measure(embeddings_ND: np.ndarray) -> dict[str, Any]:
        weight_N = np.ones(len(names)) if options["no_detector"] else numbers[:, 10].astype(np.float32)
        if options["no_norm"]:
            weight_N = weight_N / np.linalg.norm(embeddings_ND, axis=1)
        templates_TD = template_embeddings(embeddings_ND, weight_N, template_N, media_N)
        scores_P = _pair_scores(templates_TD, pairs_P2)
        metrics = on_main_rank(lambda: roc_metrics(scores_P, same_P))
        if subjects:
            gallery_G2, probes_P2 = np.concatenate(subjects[:2]), subjects[2]
            probes, gallery = [(templates_TD[two[:, 0]], two[:, 1]) for two in (probes_P2, gallery_G2)]
            found = retrieval_metrics(*probes, gallery)
            metrics |= {"rank": {k: found["recall_at"][k] for k in ("1", "5", "10") if k in found["recall_at"]}}
            metrics |= {"tpir_at_fpir": found["tpir_at_fpir"], "probes": len(probes_P2)}
        return metrics

    points_N52 = numbers[:, :10].reshape(-1, 5, 2)
    return Prepared(lambda shape: LooseCrops(path, names, points_N52, shape), measure, norms=True)


class LooseCrops(ImageList):
    """Photographs around a face that become the input of a model, ``shape`` (height, width), once they are decoded: by
    five points each, aligned to ArcFace's."""

    def __init__(self, root: str | Path, names: Sequence[str], points_N52: np.ndarray, shape: tuple[int, int]) -> None:
        super().__init__(root, [f"loose_crop/{name}" for name in names])
        self._points_N52, self._shape = points_N52, shape

    def orient(self, index: int, image_HWC: np.ndarray) -> np.ndarray:
        matrix = similarity(self._points_N52[index], template(*self._shape))
        return cv2.warpAffine(image_HWC, matrix, self._shape[::-1])


def template_embeddings(
    embeddings_ND: np.ndarray, weight_N: np.ndarray, template_N: np.ndarray, media_N: np.ndarray
) -> np.ndarray:
    """The L2-normalised sum over medias of the mean over a media's images, each with its weight: fp64 (T, D), in the
    order of the templates' numbers. A template with an embedding that is not finite is NaN."""
    of_both = np.unique([template_N, media_N], axis=1, return_inverse=True, return_counts=True)
    place_N = np.unique(template_N, return_inverse=True)[1]
    share_N = weight_N.astype(np.float64) / of_both[2][of_both[1]]
    pooled = csr_array((share_N, (place_N, np.arange(len(place_N)))))
    columns = range(0, embeddings_ND.shape[1], _BLOCK_COLUMNS)
    sums_TD = np.concatenate([pooled @ embeddings_ND[:, c : c + _BLOCK_COLUMNS] for c in columns], axis=1)
    return sums_TD / np.maximum(np.linalg.norm(sums_TD, axis=1, keepdims=True), 1e-300)


def _pair_scores(templates_TD: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """The cosine of each pair, fp64 (P,): each rank computes its share."""
    scores_P = np.zeros(len(pairs_P2))
    for block in my_blocks(len(pairs_P2), templates_TD.shape[1]):
        one, other = pairs_P2[block].T
        scores_P[block] = np.einsum("pd,pd->p", templates_TD[one], templates_TD[other])
    return all_ranks().all_reduce_(torch.from_numpy(scores_P)).numpy()


def roc_metrics(scores_P: np.ndarray, same_P: np.ndarray) -> dict[str, Any]:
    """``tar_at_far`` as the script has it: at the point of scikit-learn's ROC curve (which leaves out points on a line
    between others) whose FAR is nearest to the target, above it or below; None below 1/FAR impostor pairs.
    ``threshold_at_far``, ``auc``, ``roc``: see :func:`megaclass.evaluation.metrics.curve`. The scores are sorted in
    place: of 15 million pairs a copy more would be felt.
    """
    failed_P = np.isnan(scores_P)
    scores_P[failed_P] = np.where(same_P[failed_P], -np.inf, np.inf)
    same_P = same_P[np.argsort(scores_P)][::-1]
    scores_P.sort()
    falling_P = scores_P[::-1]
    last_K = np.flatnonzero(np.append(falling_P[1:] != falling_P[:-1], True))  # pair of each different score
    genuine_K = np.cumsum(same_P)[last_K]
    impostor_K = last_K + 1 - genuine_K
    cosine_T = np.append(np.inf, falling_P[last_K])
    metrics = curve(np.append(0, genuine_K), np.append(0, impostor_K), cosine_T, LOW_FAR_TARGETS)
    corner_K = np.ones(len(last_K), bool)
    corner_K[1:-1] = (np.diff(genuine_K, 2) != 0) | (np.diff(impostor_K, 2) != 0)
    far_K, tar_K = (np.append(0, counts[corner_K])[::-1] / counts[-1] for counts in (impostor_K, genuine_K))
    for name, target in LOW_FAR_TARGETS.items():
        if metrics["tar_at_far"][name] is not None:
            metrics["tar_at_far"][name] = float(tar_K[np.abs(far_K - target).argmin()])
    return metrics | {"genuine_pairs": int(genuine_K[-1]), "impostor_pairs": int(impostor_K[-1])}


# -- lists ----------------------------------------------------------------------------------------------


def _table(path: str | Path, columns: Sequence[int], dtype: type = np.int32, **form: Any) -> np.ndarray:
    """Columns of a list, (lines, columns). UserError, with the line, for what is none."""
    try:
        with open_regular(path, encoding="utf-8") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty list is told below
            found = np.loadtxt(file, dtype, comments=None, usecols=columns, ndmin=2, **form)
        why = "" if len(found) else "it is empty"
    except (OSError, ValueError, IndexError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
    if why:
        raise UserError(f"{path}: damaged ({why}); bring it as published")
    return found


def _places(numbers: np.ndarray, templates_T: np.ndarray, path: str | Path) -> np.ndarray:
    """The places of templates, in any shape. UserError for a template without images."""
    places = np.searchsorted(templates_T, numbers).clip(max=len(templates_T) - 1).astype(np.int32)
    if (wrong := templates_T[places] != numbers).any():
        raise UserError(f"{path}: template {numbers[wrong][0]} has no images; bring the lists of one release")
    return places


def _subjects(path: Path, templates_T: np.ndarray) -> np.ndarray:
    """The place of each template of a list of 1:N, and its subject: int32 (templates, 2)."""
    lines = np.unique(_table(path, (0, 1), delimiter=",", skiprows=1), axis=0)
    return np.stack([_places(lines[:, 0], templates_T, path), lines[:, 1]], axis=1)
